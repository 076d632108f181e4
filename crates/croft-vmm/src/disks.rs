//! Disks, from what the monitor says to what the machine takes.

use std::fs::File;
use std::os::fd::OwnedFd;

use croft_api::disk as api;
use croft_api::disk::{CacheMode, DiskFormat, OnIoError, StartDisk};
use croft_disk::{Cache, Format, Layer, OpenOptions, TestStorage};
use croft_machine::{DiskConfig, DiskLimits, OnDiskError};

// Both count in the same places.
const _: () = assert!(api::DISKS_MAX == croft_machine::DISKS_MAX);

/// A disk, with its layers' files taken from `descriptors`.
pub fn config(disk: StartDisk, descriptors: &mut impl Iterator<Item = OwnedFd>) -> DiskConfig {
    let layers = disk.layers.iter().zip(descriptors);
    let layers = layers.map(|(layer, descriptor)| Layer {
        file: File::from(descriptor),
        format: match layer.format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        },
        guessed: layer.guessed,
    });
    DiskConfig {
        layers: layers.collect(),
        name: disk.name,
        index: disk.index,
        options: OpenOptions {
            read_only: disk.options.read_only,
            cache: match disk.options.cache {
                CacheMode::Writeback | CacheMode::Writethrough => Cache::Writeback,
                CacheMode::None | CacheMode::Directsync => Cache::None,
                CacheMode::Unsafe => Cache::Unsafe,
            },
            at_least: disk.options.at_least,
            test: disk.options.test.map(|test| match test {
                api::TestStorage::DropUnflushed => TestStorage::DropUnflushed,
                api::TestStorage::IgnoreFlushes => TestStorage::IgnoreFlushes,
            }),
        },
        write_through: disk.options.cache.is_synchronous(),
        limits: DiskLimits {
            iops: disk.options.limits.iops,
            bytes_per_second: disk.options.limits.bytes_per_second,
        },
        on_error: match disk.options.on_io_error {
            OnIoError::StopIfFull => OnDiskError::StopIfFull,
            OnIoError::Stop => OnDiskError::Stop,
            OnIoError::Report => OnDiskError::Report,
        },
    }
}
