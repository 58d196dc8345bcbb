//! What guests may call: PSCI, and the hypercalls of whoever runs them.

pub(crate) mod convention;
pub(crate) mod psci;
pub(crate) mod pv_time;
pub(crate) mod service;
pub(crate) mod trng;
