//! Logins: strangers who cannot be told from accounts, and guessing.

use super::*;

#[tokio::test]
async fn a_stranger_cannot_be_told_from_an_account() {
    let house = house().await;
    house.add("alice@a.test").await;
    for hash in [Hash::Sha1, Hash::Sha256] {
        let real = house.keys("alice", hash).await.keys.unwrap();
        for stranger in ["nobody", "a b", "", "x@y"] {
            let first = house.keys(stranger, hash).await;
            let again = house.keys(stranger, hash).await;
            assert!(!first.usable && !first.disabled);
            let invented = first.keys.unwrap();
            assert_eq!(
                Some(&invented),
                again.keys.as_ref(),
                "{stranger:?} is stable"
            );
            assert_eq!(invented.salt.len(), real.salt.len());
            assert_eq!(invented.iterations, real.iterations);
            assert_eq!(invented.stored_key.len(), real.stored_key.len());
            assert_ne!(
                invented.salt,
                house.keys("other", hash).await.keys.unwrap().salt
            );
        }
        // One name however typed, also when nobody has it.
        assert_eq!(
            house.keys("NoBody", hash).await.keys,
            house.keys("nobody", hash).await.keys
        );
    }
    let none = house.login("nobody", "x", "::1").await;
    assert!(!none.verified && none.jid.is_empty());
}

#[tokio::test]
async fn invented_keys_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("directory.db");
    let store = SqliteStore::open(&path).unwrap();
    let first = house_on(Arc::new(store.clone()), 1).await;
    let before = first.keys("nobody", Hash::Sha256).await;
    first.tasks.drain(Duration::from_secs(1)).await;
    store.close().await;
    let second = house_on(Arc::new(SqliteStore::open(&path).unwrap()), 2).await;
    assert_eq!(second.keys("nobody", Hash::Sha256).await.keys, before.keys);
    let elsewhere = house_on(Arc::new(MemoryStore::default()), 3).await;
    assert_ne!(
        elsewhere.keys("nobody", Hash::Sha256).await.keys,
        before.keys
    );
}

#[tokio::test]
async fn guessing_is_throttled_and_the_owner_gets_in() {
    let house = house().await;
    house.add("alice@a.test").await;
    let home = "192.0.2.7";
    assert!(house.login("alice", "right", home).await.verified);
    let mut delays = Vec::new();
    for _ in 0..8 {
        delays.push(house.login("alice", "guess", "198.51.100.1").await.delay_ms);
    }
    assert_eq!(delays, [0, 0, 0, 0, 0, 125, 250, 500]);
    let owner = house.login("alice", "right", home).await;
    assert!(owner.verified && owner.delay_ms == 0);
    for _ in 0..120 {
        house.login("alice", "guess", "198.51.100.1").await;
    }
    let refused = house.login("alice", "right", "198.51.100.1").await;
    assert!(refused.refused && !refused.verified);
    assert!(house.login("alice", "right", home).await.verified);
    house.clock.advance(crate::throttle::WINDOW);
    assert!(house.login("alice", "right", "198.51.100.1").await.verified);
    // SCRAM: the gateway reports.
    for _ in 0..6 {
        house.keys("alice", Hash::Sha256).await;
    }
    assert!(house.keys("alice", Hash::Sha256).await.delay_ms > 0);
    let report = ReportAttemptRequest {
        domain: "a.test".into(),
        username: "Alice".into(),
        peer: "192.0.2.1".into(),
        success: true,
    };
    house
        .directory
        .report_attempt(&Cx::local(), report)
        .await
        .unwrap();
    assert_eq!(house.keys("alice", Hash::Sha256).await.delay_ms, 0);
}
