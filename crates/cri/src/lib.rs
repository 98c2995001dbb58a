//! CRI messages to the words of the engine and back, and status codes; no decisions.
