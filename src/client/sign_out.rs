//! `sign-out`: one call, for images that have no grpcurl.

use std::process::ExitCode;

use super::{channel, print, request};
use crate::{
    config::SignOutArgs,
    pb::{AdminUserGlobalSignOutRequest, sign_out_service_client::SignOutServiceClient},
};

/// Signs one user out and says so.
pub async fn run(args: SignOutArgs) -> ExitCode {
    let SignOutArgs { user_pool_id, username, client } = args;
    let channel = match channel(&client) {
        Ok(channel) => channel,
        Err(error) => return print::wrong_usage(error),
    };
    let message = AdminUserGlobalSignOutRequest { user_pool_id, username };
    match SignOutServiceClient::new(channel).admin_user_global_sign_out(request(message, &client)).await {
        Ok(response) => {
            let response = response.into_inner();
            let at = response.signed_out_at.map(|at| format!(" at {at}")).unwrap_or_default();
            print::answer(format_args!("signed out{at} (AWS request id {})", response.aws_request_id));
            ExitCode::SUCCESS
        }
        Err(status) => print::status(&status),
    }
}
