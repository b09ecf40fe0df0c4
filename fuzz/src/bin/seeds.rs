//! Writes the seeds to the folder of the corpus, which the tests read.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    for (target, name, bytes) in fuzz::seeds::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
