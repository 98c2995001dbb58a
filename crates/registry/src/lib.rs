//! The client side of the distribution specification: resolve, fetch, authorise, mirrors.
