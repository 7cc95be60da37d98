//! What the build makes of `schema/*.txt`. The code that makes it is in `build/`.

use crate::prelude::*;

include!(concat!(env!("OUT_DIR"), "/generated.rs"));
