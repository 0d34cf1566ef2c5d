//! How much is asked of Cognito: how many attempts at one time, how many a second, and never two where one will do.
//!
//! Two [`SignOut`](crate::sign_out::SignOut)s around another, from the outside in, with the retries between them:
//!
//! - [`Joining`] makes one call of those that wait for the same user;
//! - [`Paced`] keeps to the account's quota, attempt by attempt, and to the number of attempts that may be under way at one
//!   time, which is kept by the [`Gate`].

mod gate;
mod joining;
mod pace;
mod pacer;
#[cfg(test)]
mod simulation;

pub use self::{
    gate::Gate,
    joining::Joining,
    pacer::{BudgetFigures, Paced, Pacer, Quotas},
};
