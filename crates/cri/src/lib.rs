//! CRI messages to the words of the engine and back, and status codes; no decisions.
//!
//! ```text
//! client ──► observe (log line) ──► deadline (DEADLINE_EXCEEDED with the stage) ──► service ──► convert ──► engine, images
//! ```

mod code; // one table: kinds of errors to gRPC codes
mod stage; // what a request waits for
mod deadline; // grpc-timeout, answered with the stage
mod observe; // a log line for each RPC
mod convert; // messages to words and back
mod info; // verbose answers as JSON
mod node; // what the runtime says of itself
mod portion; // streamed lists
mod runtime_service; // pods and containers
mod image_service; // images
mod accept; // connections: how many, how silent
mod serve; // both on a listener

pub use code::code;
pub use image_service::ImageDoor;
pub use node::NodeFacts;
pub use runtime_service::RuntimeDoor;
pub use serve::{ServeError, serve};
