//! The smallest program that can be the helper: everything after its name is for [`sallyport_hsm::run_helper`].

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    Ok(sallyport_hsm::run_helper(env::args_os().skip(1))?)
}
