//! Parse, dispatch, exit code; decides nothing.

use std::{io, process::ExitCode};

use clap::Parser as _;
use cognito_signout::{
    client,
    cognito::AwsSource,
    config::{AwsArgs, Cli, Command, ServeArgs},
    panics,
    server::Sidecar,
    shutdown::Stop,
    telemetry,
};
use tokio::runtime::{Builder, Runtime};

/// A call makes some hundreds of small allocations: this one takes less time over them than glibc's, and far less than
/// musl's (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return client::print::usage(&error),
    };
    let runtime = match runtime(cli.command.worker_threads()) {
        Ok(runtime) => runtime,
        Err(error) => return client::print::failure(format!("cannot start: {error}")),
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve(*args).await.unwrap_or_else(client::print::failure),
            #[cfg(feature = "demo")]
            Command::Demo(args) => {
                cognito_signout::demo::run(args).await.unwrap_or_else(client::print::failure)
            }
            #[cfg(feature = "demo")]
            Command::Emulate(args) => {
                cognito_signout::demo::emulate(args).await.unwrap_or_else(client::print::failure)
            }
            Command::SignOut(args) => client::sign_out::run(args).await,
            Command::Check(args) => client::check::run(args).await,
            Command::Bulk(args) => client::bulk::run(args).await,
            Command::Health(args) => client::health::run(args).await,
        }
    });
    // What an idle peer holds open must not hold the process.
    runtime.shutdown_background();
    code
}

/// With one thread there is no other to hand a task to, to wake, or to share a cache line with: more than a third of the
/// cost of a call (docs/performance.md).
fn runtime(threads: usize) -> io::Result<Runtime> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build()
}

async fn serve(args: ServeArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let log = args.log.clone();
    let sidecar = Sidecar::bind(args, AwsSource::environment(AwsArgs::credentials_may_need_region())).await?;
    telemetry::start(&log);
    panics::report_to_log();
    sidecar.run(Stop::on_signals()?).await?;
    Ok(ExitCode::SUCCESS)
}
