//! Everything that lies on disk: blobs, layers, snapshots, records, leases, collection.
