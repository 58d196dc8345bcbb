//! Debian's kernels, and the newest of a series: pure functions of apt's output.

use emulator::error::ToolError;
use options::series::Series;

/// A kernel that Debian has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its series.
    pub series: Series,
    /// Its version, as in `6.12.117`.
    pub version: String,
    /// The package's name for apt, as in `linux-image-6.12.117+deb12-cloud-arm64:arm64`.
    pub package: String,
    /// The package's version, as in `6.12.117-1~deb12u1`.
    pub package_version: String,
}

impl Release {
    /// Reads one line of `apt-cache madison`: package, version and source between bars. Nothing if it isn't one of a
    /// kernel that can be started (others are meta packages, debug symbols, and unsigned copies).
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('|').map(str::trim);
        let (package, package_version) = (fields.next()?, fields.next()?);
        let name = package.split(':').next()?;
        let abi = name
            .strip_prefix("linux-image-")?
            .strip_suffix("-cloud-arm64")?;
        // A meta package is named after the series alone.
        if abi.split('.').count() < 3 {
            return None;
        }
        let version = package_version.split('-').next()?;
        let series = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        Some(Self {
            series: Series::parse(&series)?,
            version: version.into(),
            package: package.into(),
            package_version: package_version.into(),
        })
    }

    /// The numbers that grow with later releases of the same series.
    fn age(&self) -> Vec<u64> {
        numbers(&self.package_version)
    }
}

/// The numbers in a version, in their order: enough to order Debian's versions of one kernel series.
pub fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The newest kernel of each of `wanted`, in that order.
///
/// # Errors
///
/// [`ToolError::Usage`] for a series that isn't there, with those that are.
pub fn choose<'a>(
    releases: &'a [Release],
    wanted: &[Series],
) -> Result<Vec<&'a Release>, ToolError> {
    let newest = |series: &Series| {
        releases
            .iter()
            .filter(|release| release.series == *series)
            .max_by_key(|release| release.age())
            .ok_or_else(|| {
                let mut all: Vec<Series> = releases.iter().map(|release| release.series).collect();
                all.sort_unstable();
                all.dedup();
                let all: Vec<String> = all.iter().map(Series::to_string).collect();
                ToolError::Usage(format!(
                    "Linux {series}: this machine's Debian sources have no arm64 cloud kernel of this series; they have {}",
                    all.join(", ")
                ))
            })
    };
    wanted.iter().map(newest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
linux-image-6.1.0-50-cloud-arm64:arm64 |  6.1.176-1 | http://mirror.example/debian bookworm/main arm64 Packages
linux-image-6.1.0-56-cloud-arm64:arm64 |  6.1.192-2 | http://mirror.example/debian-security bookworm-security/main arm64 Packages
linux-image-6.1.0-55-cloud-arm64:arm64 |  6.1.192-1 | http://mirror.example/debian-security bookworm-security/main arm64 Packages
linux-image-6.12.95+deb12-cloud-arm64:arm64 | 6.12.95-1~bpo12+1 | http://mirror.example/debian bookworm-backports/main arm64 Packages
linux-image-6.12.117+deb12-cloud-arm64:arm64 | 6.12.117-1~deb12u1 | http://mirror.example/debian-security bookworm-security/main arm64 Packages
linux-image-6.12-cloud-arm64:arm64 | 6.12.117-1~deb12u1 | http://mirror.example/debian-security bookworm-security/main arm64 Packages
linux-image-6.12.117+deb12-cloud-arm64-dbg:arm64 | 6.12.117-1~deb12u1 | http://mirror.example/debian-security bookworm-security/main arm64 Packages
linux-image-cloud-arm64:arm64 | 6.12.95-1~bpo12+1 | http://mirror.example/debian bookworm-backports/main arm64 Packages
nonsense
";

    fn releases() -> Vec<Release> {
        MADISON.lines().filter_map(Release::parse).collect()
    }

    fn series(text: &str) -> Series {
        Series::parse(text).expect("a series")
    }

    #[test]
    fn only_kernels_that_can_be_started_count() {
        assert_eq!(releases().len(), 5);
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_in_the_order_asked_for() {
        let releases = releases();
        let chosen = choose(&releases, &[series("6.12"), series("6.1")]).expect("both are there");
        let versions: Vec<&str> = chosen.iter().map(|release| &*release.version).collect();
        assert_eq!(versions, ["6.12.117", "6.1.192"]);
        assert_eq!(chosen[1].package, "linux-image-6.1.0-56-cloud-arm64:arm64");
        assert_eq!(chosen[1].package_version, "6.1.192-2");
    }

    #[test]
    fn a_series_that_is_not_there_is_told_with_those_that_are() {
        let error = choose(&releases(), &[series("5.10")]).expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "Linux 5.10: this machine's Debian sources have no arm64 cloud kernel of this series; they have 6.1, 6.12"
        );
    }
}
