//! How a story is told: a deployment, its accounts, the story, and the guard at the end: it stops in
//! order, and no log has an unexpected complaint. Owns nothing of the stories.

use anyhow::{Result, bail};
use chancery_testkit::server::{Server, Setup, Shape};

/// Runs a story on a deployment of the usual kind.
pub(crate) fn play(
    shape: Shape,
    accounts: &[&str],
    story: impl AsyncFnOnce(&mut Server) -> Result<()>,
) {
    play_with(shape, Setup::default(), accounts, &[], story);
}

/// The same, with more configuration, and with complaints that the story itself causes.
pub(crate) fn play_with(
    shape: Shape,
    setup: Setup,
    accounts: &[&str],
    complaints: &[&str],
    story: impl AsyncFnOnce(&mut Server) -> Result<()>,
) {
    let mut server = Server::start(shape, setup).expect("the deployment starts");
    let told = tell(&mut server, accounts, complaints, story);
    if let Err(error) = told {
        let kept = server.keep_logs();
        panic!("{error:#}\nlogs: {}", kept.display());
    }
}

fn tell(
    server: &mut Server,
    accounts: &[&str],
    complaints: &[&str],
    story: impl AsyncFnOnce(&mut Server) -> Result<()>,
) -> Result<()> {
    if !accounts.is_empty() {
        server.accounts(accounts)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(story(server))?;
    drop(runtime);
    server.stop()?;
    let found = server.complaints(complaints);
    if !found.is_empty() {
        bail!("unexpected complaints in the logs:\n{}", found.join("\n"));
    }
    Ok(())
}
