//! Thumbnails, made when first asked for, in a few fixed sizes.
//!
//! [Thumbnails](https://spec.matrix.org/v1.16/client-server-api/#thumbnails). Decoding what anybody uploads is the
//! most dangerous thing done here: formats, dimensions and memory are bounded, and those of peers are never trusted.

use std::{
    fs::File,
    io::{BufReader, Cursor},
};

use image::{
    DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits, imageops::FilterType,
};
use sallyport_core::limits::{
    THUMBNAIL_DECODED_BYTES_MAX, THUMBNAIL_SOURCE_BYTES_MAX, THUMBNAIL_SOURCE_PIXELS_MAX,
};
use sallyport_store::{MediaContent, Store, Thumbnail, ThumbnailKey};

use super::{Files, MediaError};

/// How an image becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It fills the size, and what hangs over is cut off.
    Crop,
    /// It fits into the size.
    Scale,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How.
    pub method: Method,
    /// At least this many pixels wide.
    pub width: u32,
    /// At least this many pixels high.
    pub height: u32,
}

/// The sizes that are made, smallest first: those of the specification and one for large faces.
const SIZES: [(Method, u32, u32); 6] = [
    (Method::Crop, 32, 32),
    (Method::Crop, 96, 96),
    (Method::Crop, 320, 320),
    (Method::Scale, 320, 240),
    (Method::Scale, 640, 480),
    (Method::Scale, 800, 600),
];

/// A thumbnail of this content at least as large as wanted, if there is a size like that. Made if it is not there yet;
/// small images stand for themselves.
///
/// # Errors
/// If the content is no image that we decode, or too large.
pub fn thumbnail(
    store: &Store,
    files: &Files,
    content: &MediaContent,
    wanted: Wanted,
    random: [u8; 18],
) -> Result<Thumbnail, MediaError> {
    let (method, width, height) = size_for(wanted);
    let key = ThumbnailKey {
        source: content.sha256,
        method: match method {
            Method::Crop => "crop",
            Method::Scale => "scale",
        },
        width,
        height,
    };
    if let Some(thumbnail) = store.read(|read| read.thumbnail(&key))? {
        return Ok(thumbnail);
    }
    if content.size > THUMBNAIL_SOURCE_BYTES_MAX {
        return Err(MediaError::NoThumbnail(None));
    }
    let (image, format) = decode(files, content).map_err(no_thumbnail)?;
    let thumbnail = if image.width() <= width && image.height() <= height {
        let content_type = format.to_mime_type().to_owned();
        Thumbnail { sha256: content.sha256, size: content.size, content_type }
    } else {
        let (bytes, format) =
            encode(&shrink(&image, method, width, height)).map_err(no_thumbnail)?;
        let mut file = files.receive(random, u64::MAX)?;
        file.write(&bytes)?;
        let (sha256, size) = file.finish()?;
        Thumbnail { sha256, size, content_type: format.to_mime_type().to_owned() }
    };
    let made = thumbnail.clone();
    store.write(move |write| write.add_thumbnail(&key, &made))?;
    Ok(thumbnail)
}

fn no_thumbnail(error: image::ImageError) -> MediaError {
    MediaError::NoThumbnail(Some(error))
}

/// The smallest size that is large enough, or else the largest.
fn size_for(wanted: Wanted) -> (Method, u32, u32) {
    let of_method = || SIZES.into_iter().filter(|(method, ..)| *method == wanted.method);
    of_method()
        .find(|(_, width, height)| *width >= wanted.width && *height >= wanted.height)
        .or_else(|| of_method().next_back())
        .unwrap_or((Method::Scale, 800, 600))
}

fn decode(
    files: &Files,
    content: &MediaContent,
) -> Result<(DynamicImage, ImageFormat), image::ImageError> {
    let file = BufReader::new(File::open(files.path(&content.sha256))?);
    let mut reader = ImageReader::new(file).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(THUMBNAIL_SOURCE_PIXELS_MAX);
    limits.max_image_height = Some(THUMBNAIL_SOURCE_PIXELS_MAX);
    limits.max_alloc = Some(THUMBNAIL_DECODED_BYTES_MAX);
    reader.limits(limits);
    let format = reader.format().unwrap_or(ImageFormat::Png);
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok((image, format))
}

fn shrink(image: &DynamicImage, method: Method, width: u32, height: u32) -> DynamicImage {
    match method {
        Method::Crop => image.resize_to_fill(width, height, FilterType::Triangle),
        Method::Scale => image.resize(width, height, FilterType::Triangle),
    }
}

/// PNG for what is transparent, JPEG for all else.
fn encode(image: &DynamicImage) -> Result<(Vec<u8>, ImageFormat), image::ImageError> {
    let mut bytes = Cursor::new(Vec::new());
    let format = if image.color().has_alpha() {
        image.write_to(&mut bytes, ImageFormat::Png)?;
        ImageFormat::Png
    } else {
        image.to_rgb8().write_to(&mut bytes, ImageFormat::Jpeg)?;
        ImageFormat::Jpeg
    };
    Ok((bytes.into_inner(), format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |method, width, height, expected: (u32, u32)| {
            let (_, width, height) = size_for(Wanted { method, width, height });
            assert_eq!((width, height), expected);
        };
        check(Method::Crop, 1, 1, (32, 32));
        check(Method::Crop, 32, 33, (96, 96));
        check(Method::Crop, 5000, 1, (320, 320));
        check(Method::Scale, 320, 240, (320, 240));
        check(Method::Scale, 321, 1, (640, 480));
        check(Method::Scale, 2000, 2000, (800, 600));
    }

    #[test]
    fn images_shrink_and_keep_their_shape_or_fill_the_size() {
        let image = DynamicImage::new_rgb8(1000, 500);
        let scaled = shrink(&image, Method::Scale, 320, 240);
        assert_eq!((scaled.width(), scaled.height()), (320, 160));
        let cropped = shrink(&image, Method::Crop, 96, 96);
        assert_eq!((cropped.width(), cropped.height()), (96, 96));
        assert_eq!(encode(&image).unwrap().1, ImageFormat::Jpeg);
        assert_eq!(encode(&DynamicImage::new_rgba8(2, 2)).unwrap().1, ImageFormat::Png);
    }
}
