//! An answer that its handler puts on record itself.

use std::time::Duration;

use http::Response;
use http_body::Body;

use super::capture::{self, Answer, AnswerBody};
use super::collect::{self, Collected, declared_len, has_no_body};
use crate::model::error::BoxError;
use crate::policy::config::Config;
use crate::store::Record;

/// The record of an answer, how long it is kept, and the answer, of whose body as much was
/// read as belongs on record.
pub(crate) async fn recorded<B>(
    response: Response<B>,
    config: &Config,
) -> Result<(Record, Duration, Answer<B>), BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let mut begun = Collected::default();
    let hint = body.size_hint();
    let has_no_body = has_no_body(parts.status);
    let limit = config.response_body_limit;
    let declared = declared_len(&parts.headers, &hint);
    let too_long = declared.filter(|&len| !has_no_body && len > limit as u64);
    let (record, body) = if has_no_body {
        let record = capture::whole(&parts, &begun, config);
        (record, AnswerBody::Original(body))
    } else if let Some(len) = too_long {
        let record = capture::omitted(&parts, Some(len), config);
        (record, AnswerBody::Original(body))
    } else {
        let mut body = Box::pin(body);
        if collect::whole(body.as_mut(), limit, &mut begun).await? {
            if hint.exact().is_none() {
                begun.keep_len_untold();
            }
            let record = capture::whole(&parts, &begun, config);
            (record, AnswerBody::Whole(begun))
        } else {
            let record = capture::omitted(&parts, None, config);
            (record, AnswerBody::Pending { begun, body })
        }
    };
    let (record, retention) = record;
    Ok((record, retention, Response::from_parts(parts, body)))
}
