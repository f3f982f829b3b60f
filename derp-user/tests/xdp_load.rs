//! t
use derp_user::dataplane::Kernel;
#[test]
fn loads() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let kernel = match Kernel::load() {
        Ok(k) => k,
        Err(e) => {
            use std::error::Error;
            let mut s: Option<&dyn Error> = Some(&e);
            while let Some(x) = s {
                println!("{x}");
                s = x.source();
            }
            panic!()
        }
    };
    println!("{:?}", kernel.program_info().unwrap());
}
