//! Decides about pods and containers; no protobuf, no HTTP.
