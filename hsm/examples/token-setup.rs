//! The smallest program that sets blank tokens up: everything after its name is for [`sallyport_hsm::run_setup`].

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    Ok(sallyport_hsm::run_setup(env::args_os().skip(1))?)
}
