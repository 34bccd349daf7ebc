//! vCards (XEP-0054): the own one, and those of colleagues whom policy lets see each other. What is
//! set is published, so it is in the log before it takes effect. A vCard that is not there, an
//! account that is not there and one behind a wall are answered alike.
//!
//! Avatars in it (XEP-0153) are the clients' affair: the hash stays in presence as it was sent.

use bytes::Bytes;
use chancery_api::Code;
use chancery_api::pubsub::{GetVcardRequest, SetVcardRequest};
use chancery_xml::alone;
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "vcard",
        specifications: &[
            Specification {
                name: "XEP-0054",
                version: "1.3.0",
                status: "complete; of colleagues whom policy allows",
            },
            Specification {
                name: "XEP-0153",
                version: "1.1.1",
                status: "complete: the server hands on what clients say",
            },
        ],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let own = Handler::ask(Verb::Any, |request| own(request).boxed()).publishing();
    registrar.handle(Scope::Account, ns::VCARD, "vCard", own);
    let other = Handler::ask(Verb::Get, |request| other(request).boxed());
    registrar.handle(Scope::Other, ns::VCARD, "vCard", other);
    for scope in [Scope::Server, Scope::Account, Scope::Other] {
        registrar.disco(scope, ns::VCARD);
    }
}

async fn own(request: Request) -> Answer {
    let owner = request.identity.account.to_string();
    if request.is_set() {
        return set(&request, owner).await;
    }
    match get(&request, owner).await? {
        Some(xml) => Ok(xml),
        None => Err(StanzaError::new(Condition::ItemNotFound)),
    }
}

async fn other(request: Request) -> Answer {
    let owner = request.to.as_ref().map(ToString::to_string);
    let Some(owner) = owner else {
        return Err(answer::absent());
    };
    get(&request, owner).await?.ok_or_else(answer::absent)
}

async fn get(request: &Request, owner: String) -> Result<Option<String>, StanzaError> {
    let (cx, _span) = request.cx("pubsub.get_vcard");
    let got = request
        .gateway
        .pubsub
        .get_vcard(&cx, GetVcardRequest { owner })
        .await
        .map_err(|error| answer::api_error(&error))?;
    got.xml
        .map(|xml| String::from_utf8(xml.to_vec()))
        .transpose()
        .map_err(|_| StanzaError::new(Condition::InternalServerError))
}

async fn set(request: &Request, owner: String) -> Answer {
    let vcard = request
        .payload()
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let xml = if vcard.has_elements || vcard.has_text {
        alone(&request.element, &[], vcard)
    } else {
        Bytes::new()
    };
    let (cx, _span) = request.cx("pubsub.set_vcard");
    let set = request
        .gateway
        .pubsub
        .set_vcard(&cx, SetVcardRequest { owner, xml })
        .await;
    match set {
        Ok(_) => Ok(String::new()),
        // Too long.
        Err(error) if error.code == Code::Invalid => {
            Err(StanzaError::new(Condition::NotAcceptable))
        }
        Err(error) => Err(answer::api_error(&error)),
    }
}
