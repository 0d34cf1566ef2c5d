//! `health`: for exec probes.

use std::process::ExitCode;

use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{channel, print, request};
use crate::config::HealthArgs;

/// Asks once; exit status 0 for SERVING, 1 for anything else that is an answer.
pub async fn run(args: HealthArgs) -> ExitCode {
    let HealthArgs { service, client } = args;
    let channel = match channel(&client) {
        Ok(channel) => channel,
        Err(error) => return print::wrong_usage(error),
    };
    match HealthClient::new(channel).check(request(HealthCheckRequest { service }, &client)).await {
        Ok(response) => {
            let status = response.into_inner().status();
            print::answer(status.as_str_name());
            if status == ServingStatus::Serving { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(status) => print::status(&status),
    }
}
