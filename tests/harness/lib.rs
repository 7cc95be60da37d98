//! What the tests of this folder share. Holds no assertion about the product; those stand in the tests.
#![forbid(unsafe_code)]

pub mod repository;
