//! How much is asked of Cognito: how many attempts at one time, how many a second, and never two where one will do.
//!
//! Three [`SignOut`](crate::sign_out::SignOut)s around another, from the outside in, with the retries between the first two:
//!
//! - [`Joining`] makes one call of those that wait for the same user;
//! - [`Paced`] keeps to the account's quota, attempt by attempt;
//! - [`Bounded`] limits how many attempts are under way at one time.

mod gate;
mod joining;
mod pace;
mod pacer;
#[cfg(test)]
mod simulation;

pub use self::{
    gate::{Bounded, Gate},
    joining::Joining,
    pacer::{BudgetFigures, Paced, Pacer, Quotas},
};
