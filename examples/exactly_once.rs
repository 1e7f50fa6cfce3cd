//! A ledger and a killer: what is left of "exactly once" when the process dies at any
//! instant, over and over.
//!
//! ```sh
//! cargo run --features sqlite --example exactly_once
//! ```
//!
//! It starts itself as a server on a SQLite file, sends it transfers with keys and retries
//! from several clients at once, kills it with SIGKILL at random instants, starts it again,
//! and goes on until every transfer has its answer. Then it compares the ledger's rows with
//! the keys. It does so twice: with the row and the recorded answer in one transaction, and
//! with plain recording, where the row is committed first and the answer recorded after it.
//!
//! `server.rs` is what to imitate, `killer.rs` is the script. It exits with an error if a
//! transfer in a transaction was made twice or got lost, or an answer that a client has seen
//! does not come back.

#[path = "exactly_once/killer.rs"]
mod killer;
#[path = "exactly_once/server.rs"]
mod server;

use std::error::Error;
use std::path::Path;

use self::server::Mode;

type Fault = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => play().await,
        // How it starts itself.
        ["--serve", mode, file] => {
            let mode = Mode::named(mode).ok_or("there is no such mode")?;
            server::serve(mode, Path::new(file)).await
        }
        _ => Err("it takes no arguments".into()),
    }
}

async fn play() -> Result<(), Fault> {
    let mut scores = Vec::new();
    for mode in Mode::ALL {
        println!("\n{}:", mode.title());
        scores.push((mode, killer::play(mode).await?));
    }
    println!(
        "\n{:<24}  keys  kills  rows  twice  lost  answers that came back",
        ""
    );
    for (mode, score) in &scores {
        let killer::Score {
            keys,
            kills,
            rows,
            twice,
            lost,
            replayed,
        } = score;
        println!(
            "{:<24}  {keys:>4}  {kills:>5}  {rows:>4}  {twice:>5}  {lost:>4}  {replayed} of {keys}",
            mode.title()
        );
    }
    for (mode, score) in scores {
        if mode == Mode::Transaction && !score.is_exact() {
            return Err("an effect and its record did not stay together".into());
        }
    }
    println!("\nOne transaction, one effect. Plain recording may repeat what a kill cut in two.");
    Ok(())
}
