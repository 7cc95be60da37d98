//! The server: sockets, engine and cluster joined, one loop per core. The only glue.
#![forbid(unsafe_code)]
