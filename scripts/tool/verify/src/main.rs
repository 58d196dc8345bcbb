//! The commands behind `scripts/test` and `scripts/mutate`: `verify test …` is `scripts/test …`, and so on.

mod checks;
mod instructions;
mod mutants;
mod trace;

use std::process::ExitCode;

use emulator::error::USAGE;
use emulator::front_end::{self, named};

fn main() -> ExitCode {
    front_end::run(|arguments| {
        let command = arguments.next().unwrap_or_default();
        match command.to_str() {
            Some("test") => checks::main(named("scripts/test", arguments)),
            Some("mutate") => mutants::main(named("scripts/mutate", arguments)),
            _ => {
                eprintln!("error: use scripts/test or scripts/mutate");
                USAGE
            }
        }
    })
}
