//! Media types of images and their parts: the OCI's, and Docker's of its
//! second schema.

use crate::import::probe::Compression;

/// An image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Manifests of an image for several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is not compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifests for several platforms.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's configuration.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Whether a manifest is one of an image.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | DOCKER_MANIFEST)
}

/// Whether it is one of images for several platforms.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | DOCKER_LIST)
}

/// Whether it is the configuration of an image that can be run.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, CONFIG | DOCKER_CONFIG)
}

/// How a layer is compressed; `None` if it is not a layer that can be had.
/// "Foreign" and non-distributable ones are not different but in that nobody
/// may have a copy of them.
pub fn compression(media_type: &str) -> Option<Compression> {
    let layers = [
        "application/vnd.oci.image.layer.v1.",
        "application/vnd.oci.image.layer.nondistributable.v1.",
        "application/vnd.docker.image.rootfs.diff.",
        "application/vnd.docker.image.rootfs.foreign.diff.",
    ];
    let rest = layers
        .iter()
        .find_map(|layer| media_type.strip_prefix(layer))?;
    match rest {
        "tar" => Some(Compression::None),
        "tar+gzip" | "tar.gzip" => Some(Compression::Gzip),
        "tar+zstd" | "tar.zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_say_how_they_are_compressed() {
        for (media_type, compression) in [
            (LAYER, Some(Compression::None)),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                Some(Compression::Gzip),
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                Some(Compression::Zstd),
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Some(Compression::Gzip),
            ),
            ("application/vnd.docker.image.rootfs.diff.tar.xz", None),
            ("application/vnd.in-toto+json", None),
            ("", None),
        ] {
            assert_eq!(super::compression(media_type), compression, "{media_type}");
        }
    }
}
