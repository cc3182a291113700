//! A server that dies, hangs, or drops its connections, under requests that keep coming.

use super::traffic::Traffic;
use crate::{
    Judgement,
    scenario::{Check, Lab},
    servers::ServerControl,
    trouble::{Trial, Trouble},
};
use session_core::Durability;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a request may be without an answer: some timeouts, one after the other.
const ANSWER: Duration = Duration::from_secs(20);
/// How often all connections are cut.
const CUTS: usize = 10;

fn control(lab: &Lab) -> Trial<&Arc<dyn ServerControl>> {
    lab.control().ok_or_else(|| Trouble::unproven("no power over the server"))
}

pub(super) struct ServerRestart;

impl Check for ServerRestart {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let traffic = Traffic::begin(lab).await?;
        traffic.until_served(10).await?;
        control(lab)?.restart().await?;
        let back = Instant::now();
        let served = traffic.until_served(5).await;
        let told = traffic.end().await;
        served?;
        let durability = lab.capabilities().durability;
        let judgement = told.judge(lab, durability == Durability::Volatile).await?;
        Ok(judgement.note(format!("{durability:?}; everybody was served {:?} after it", back.elapsed())))
    }
}

pub(super) struct ServerPause;

impl Check for ServerPause {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let traffic = Traffic::begin(lab).await?;
        traffic.until_served(5).await?;
        control(lab)?.pause().await?;
        let answered = traffic.until_refused(ANSWER).await;
        control(lab)?.resume().await?;
        let served = traffic.until_served(5).await;
        let told = traffic.end().await;
        served?;
        let judgement = told.judge(lab, false).await?;
        Ok(judgement
            .require(answered, || format!("the server hung, and so did requests, for more than {ANSWER:?}")))
    }
}

pub(super) struct ConnectionStorm;

impl Check for ConnectionStorm {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let traffic = Traffic::begin(lab).await?;
        let mut served = Ok(());
        for _ in 0..CUTS {
            served = traffic.until_served(3).await;
            if served.is_err() {
                break;
            }
            control(lab)?.cut().await?;
        }
        if served.is_ok() {
            served = traffic.until_served(3).await;
        }
        let told = traffic.end().await;
        served?;
        told.judge(lab, false).await
    }
}

pub(super) struct Failover;

impl Check for Failover {
    async fn check(lab: &Lab) -> Trial<Judgement> {
        let traffic = Traffic::begin(lab).await?;
        traffic.until_served(10).await?;
        let died = Instant::now();
        // With replicas, the restart of a server is the choice of another one.
        control(lab)?.restart().await?;
        let served = traffic.until_served(5).await;
        let back = died.elapsed();
        let told = traffic.end().await;
        served?;
        Ok(told.judge(lab, true).await?.note(format!("everybody was served {back:?} after the primary died")))
    }
}
