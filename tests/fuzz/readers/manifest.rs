//! A manifest; one that is read must be written and read again as the same.

use rscapret::{Result, bundle::Bundle};

pub fn read(bytes: &[u8]) -> Result<()> {
    let bundle = Bundle::parse(bytes)?;
    assert_eq!(Bundle::parse(&bundle.to_json().unwrap()).unwrap(), bundle);
    Ok(())
}
