//! `policy`: check, apply, show and explain who may write to whom.

use std::io::Read;
use std::path::Path;

use chancery_api::policy::{ApplyRequest, ApplyResponse, ExplainRequest, ShowRequest};
use chancery_api::{Decision, Denial, Kind};

use super::{Admin, about, actor, cx, unconfirmed};
use crate::cli::Policy;
use crate::error::{Failure, OK, Outcome};
use crate::out::say;

/// Bytes of a policy file.
const FILE_BYTES: u64 = 2 * 1024 * 1024;

pub async fn run(admin: &Admin, command: Policy) -> Outcome {
    match command {
        Policy::Check { file } => {
            let toml = read(&file)?;
            submit(admin, &file, toml, true).await?;
            say!("{}: no problems", file.display());
            Ok(OK)
        }
        Policy::Apply { file } => {
            let toml = read(&file)?;
            let answer = submit(admin, &file, toml, false).await?;
            say!("version {} is in force", answer.version);
            unconfirmed(&answer.unconfirmed)
        }
        Policy::Show { version } => show(admin, version.unwrap_or(0)).await,
        Policy::Explain { from, to } => explain(admin, &from, &to).await,
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let whole = |error: std::io::Error| Failure::new(format!("{}: {error}", file.display()));
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(whole)?;
        return Ok(text);
    }
    if std::fs::metadata(file).map_err(whole)?.len() > FILE_BYTES {
        return Err(Failure::new(format!(
            "{}: longer than {FILE_BYTES} bytes",
            file.display()
        )));
    }
    std::fs::read_to_string(file).map_err(whole)
}

/// Checks `toml`, and puts it in force unless told not to; every problem with its line.
pub async fn submit(
    admin: &Admin,
    file: &Path,
    toml: String,
    check_only: bool,
) -> Result<ApplyResponse, Failure> {
    let name = file.display().to_string();
    let request = ApplyRequest {
        toml,
        check_only,
        actor: actor(),
    };
    let answer = admin
        .policy
        .apply(&cx(), request)
        .await
        .map_err(about(&name))?;
    if answer.problems.is_empty() {
        return Ok(answer);
    }
    let line = |problem: &chancery_api::policy::Problem| match problem.line {
        0 => format!("{name}: {}", problem.problem),
        line => format!("{name}:{line}: {}", problem.problem),
    };
    Err(Failure(answer.problems.iter().map(line).collect()))
}

async fn show(admin: &Admin, version: u64) -> Outcome {
    let answer = admin
        .policy
        .show(&cx(), ShowRequest { version })
        .await
        .map_err(about("policy"))?;
    say!(
        "# version {}, applied {} by {}",
        answer.version,
        crate::time::utc(answer.applied_at_ms),
        if answer.actor.is_empty() {
            "nobody"
        } else {
            &answer.actor
        }
    );
    say!("{}", answer.toml.trim_end());
    Ok(OK)
}

async fn explain(admin: &Admin, from: &str, to: &str) -> Outcome {
    let from = admin.jid(from).await?;
    let to = admin.jid(to).await?;
    let request = ExplainRequest {
        from: from.clone(),
        to: to.clone(),
    };
    let answer = admin
        .policy
        .explain(&cx(), request)
        .await
        .map_err(about("policy"))?;
    for explanation in &answer.kinds {
        let kind = match explanation.kind() {
            Kind::Message => "message",
            Kind::Presence => "presence",
            Kind::Iq => "iq",
            Kind::Unspecified => "unknown",
        };
        let verdict = explanation.verdict.clone().unwrap_or_default();
        let decision = match (verdict.decision(), verdict.denial()) {
            (Decision::Allow, _) => "allowed",
            (_, Denial::PolicyViolation) => "denied, the sender is told",
            (_, Denial::RemoteServerNotFound) => "denied, no such domain",
            _ => "denied, as if absent",
        };
        let rule = if verdict.rule_id.is_empty() {
            "-"
        } else {
            &verdict.rule_id
        };
        say!(
            "{kind} {from} -> {to}: {decision} (rule {rule}, version {}): {}",
            verdict.policy_version,
            explanation.because
        );
    }
    Ok(OK)
}
