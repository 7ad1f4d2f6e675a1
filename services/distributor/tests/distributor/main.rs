//! The distributor as its clients and its members see it: what bad input gets, and when a write is acknowledged.

mod bad_inputs;
mod messages;
mod quorum;
mod rig;
