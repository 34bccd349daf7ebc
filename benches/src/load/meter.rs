//! CPU and memory of processes, from /proc.

use anyhow::{Context, Result};

/// User and system CPU of the processes so far, in microseconds.
pub fn cpu_us(pids: &[u32]) -> Result<u64> {
    let ticks_per_second = 100; // USER_HZ is 100 on every Linux that runs this
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        let rest = stat.rsplit_once(')').context("stat")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks * 1_000_000 / ticks_per_second)
}

/// Resident memory of the processes, in bytes.
pub fn rss(pids: &[u32]) -> Result<u64> {
    let mut bytes = 0;
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .context("VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        bytes += kib * 1024;
    }
    Ok(bytes)
}
