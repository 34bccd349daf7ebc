//! What the own archive keeps (XEP-0441). The archive service owns it and applies it to what comes
//! afterwards. Refuses the default `roster`: the log asks nobody whom somebody knows.

use chancery_api::archive::{
    GetPreferencesRequest, Keep, Preferences as Wire, SetPreferencesRequest,
};
use chancery_xmpp::mam::{self, Fallback, Preferences};
use chancery_xmpp::{Condition, Jid, StanzaError};

use crate::iq::{Answer, Request};
use crate::pipeline::answer;

pub(super) async fn run(request: Request) -> Answer {
    if request.is_set() {
        set(request).await
    } else {
        get(request).await
    }
}

async fn get(request: Request) -> Answer {
    let ask = GetPreferencesRequest {
        jid: request.identity.account.to_string(),
    };
    let (cx, _span) = request.cx("archive.get_preferences");
    let got = request.gateway.archive.get_preferences(&cx, ask).await;
    let got = got.map_err(|error| answer::api_error(&error))?;
    Ok(write(&got.preferences.unwrap_or_default()))
}

async fn set(request: Request) -> Answer {
    let wanted = Preferences::read(&super::payload(&request)?)?;
    let fallback = match wanted.default {
        Fallback::Always => Keep::Always,
        Fallback::Never => Keep::Never,
        Fallback::Roster => return Err(StanzaError::new(Condition::FeatureNotImplemented)),
    };
    let list = |jids: &[Jid]| jids.iter().map(ToString::to_string).collect();
    let wanted = Wire {
        fallback: fallback.into(),
        always: list(&wanted.always),
        never: list(&wanted.never),
    };
    let ask = SetPreferencesRequest {
        jid: request.identity.account.to_string(),
        preferences: Some(wanted.clone()),
        actor: request.identity.full.to_string(),
    };
    let (cx, _span) = request.cx("archive.set_preferences");
    let set = request.gateway.archive.set_preferences(&cx, ask).await;
    set.map_err(|error| answer::api_error(&error))?;
    Ok(write(&wanted))
}

fn write(preferences: &Wire) -> String {
    let default = match preferences.fallback() {
        Keep::Never => "never",
        Keep::Always | Keep::Unspecified => "always",
    };
    mam::preferences(default, &preferences.always, &preferences.never)
}
