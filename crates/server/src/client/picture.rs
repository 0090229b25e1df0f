//! Pictures as inputs: decoded, resized to the model's height and width, laid out as its shape says.
//!
//! Channels are one (grey) or three (RGB; transparency is dropped). Floating-point inputs get 0 to 1,
//! integers 0 to 255. Nothing else is done to the pixels: where a model wants its own mean and
//! deviation, prepare a `.npy`.

use std::io::Cursor;

use image::{DynamicImage, ImageReader, imageops::FilterType};
use sconce_repository::DataType;

use super::array::{Array, Number};

/// More values than this are not made of one picture.
const MAX_VALUES: u64 = 1 << 28;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    ChannelsFirst,
    ChannelsLast,
    NoChannels,
}

/// How the values of a picture lie in a tensor.
#[derive(Debug, PartialEq)]
struct Layout {
    /// Dimensions of 1 in front, for the batch.
    lead: usize,
    order: Order,
    grey: bool,
    height: Option<u32>,
    width: Option<u32>,
}

impl Layout {
    /// The layout for an input whose shape is known; `batched` where it is known whether the first
    /// dimension is the batch. Shapes that say nothing get `[1, 3, H, W]`.
    fn new(shape: Option<&[i64]>, batched: Option<bool>) -> Option<Self> {
        let Some(shape) = shape else {
            return Some(Self {
                lead: 1,
                order: Order::ChannelsFirst,
                grey: false,
                height: None,
                width: None,
            });
        };
        let channels = |dim: i64| matches!(dim, 1 | 3);
        let (lead, item) = match (shape, batched) {
            ([-1, item @ ..], Some(true)) if item.len() < 4 => (1, item),
            ([-1, 1, item @ ..], Some(true)) if item.len() == 3 => (2, item),
            ([-1 | 1, item @ ..], _) if item.len() == 3 => (1, item),
            // Neither end can be the channels: a batch of grey pictures.
            ([-1, item @ ..], None) if item.len() == 2 && !channels(item[1]) => (1, item),
            _ => (0, shape),
        };
        let (order, channels, height, width) = match *item {
            [height, width] => (Order::NoChannels, 1, height, width),
            [first, height, width] if channels(first) => (Order::ChannelsFirst, first, height, width),
            [height, width, last] if channels(last) => (Order::ChannelsLast, last, height, width),
            [-1, height, width] => (Order::ChannelsFirst, 3, height, width),
            [height, width, -1] => (Order::ChannelsLast, 3, height, width),
            _ => return None,
        };
        let size = |dim: i64| match dim {
            -1 => Some(None),
            _ => u32::try_from(dim).ok().filter(|&dim| dim > 0).map(Some),
        };
        Some(Self { lead, order, grey: channels == 1, height: size(height)?, width: size(width)? })
    }

    fn shape(&self, height: u32, width: u32) -> Vec<i64> {
        let (height, width, channels) = (height.into(), width.into(), if self.grey { 1 } else { 3 });
        let mut shape = vec![1; self.lead];
        match self.order {
            Order::ChannelsFirst => shape.extend([channels, height, width]),
            Order::ChannelsLast => shape.extend([height, width, channels]),
            Order::NoChannels => shape.extend([height, width]),
        }
        shape
    }
}

/// A PNG or JPEG file as a tensor for an input of this dtype and shape.
///
/// # Errors
/// One phrase: the file is damaged, or no picture fits the input.
pub(super) fn array(
    file: &[u8],
    data_type: DataType,
    shape: Option<&[i64]>,
    batched: Option<bool>,
) -> Result<Array, String> {
    let layout = Layout::new(shape, batched)
        .ok_or_else(|| format!("the input's shape {:?} is not that of a picture", shape.unwrap_or(&[])))?;
    let values = values(data_type)?;
    let picture = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|error| error.to_string())?
        .decode()
        .map_err(|error| format!("it is not a picture that can be read: {error}"))?;
    let (height, width) =
        (layout.height.unwrap_or(picture.height()), layout.width.unwrap_or(picture.width()));
    if u64::from(height) * u64::from(width) > MAX_VALUES / 3 {
        return Err(format!("a picture of {width} x {height} is too large"));
    }
    let pixels = pixels(&picture, layout.grey, width, height);
    let channels = if layout.grey { 1 } else { 3 };
    let mut data = Vec::with_capacity(pixels.len() * data_type.size().unwrap_or(1));
    let mut add = |pixel: &u8| data.extend_from_slice(&values[usize::from(*pixel)]);
    match layout.order {
        Order::ChannelsFirst => {
            for channel in 0..channels {
                pixels.iter().skip(channel).step_by(channels).for_each(&mut add);
            }
        }
        Order::ChannelsLast | Order::NoChannels => pixels.iter().for_each(&mut add),
    }
    Ok(Array { data_type, shape: layout.shape(height, width), data: data.into() })
}

/// The bytes that stand for each value of a pixel.
fn values(data_type: DataType) -> Result<Vec<Vec<u8>>, String> {
    let unit = match data_type {
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => true,
        DataType::Uint8
        | DataType::Uint16
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64 => false,
        DataType::Bool | DataType::Int8 | DataType::Bytes => {
            return Err(format!("pixels cannot be sent as {data_type}"));
        }
    };
    (0..=255_u8)
        .map(|pixel| {
            let number =
                if unit { Number::Float(f64::from(pixel) / 255.0) } else { Number::Integer(pixel.into()) };
            let mut bytes = Vec::new();
            number.write(data_type, &mut bytes).map(|()| bytes)
        })
        .collect()
}

/// The pixels row by row, one or three bytes each, in the wanted size.
fn pixels(picture: &DynamicImage, grey: bool, width: u32, height: u32) -> Vec<u8> {
    let same = (picture.width(), picture.height()) == (width, height);
    let resize = |picture: &DynamicImage| picture.resize_exact(width, height, FilterType::Triangle);
    // To eight bits first, so that a palette or sixteen bits are resized like anything else.
    let flat: DynamicImage = if grey { picture.to_luma8().into() } else { picture.to_rgb8().into() };
    let flat = if same { flat } else { resize(&flat) };
    flat.into_bytes()
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.into().write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    /// Two pixels side by side: red, and a mix.
    fn two() -> Vec<u8> {
        let mut picture = RgbImage::new(2, 1);
        picture.put_pixel(0, 0, Rgb([255, 0, 0]));
        picture.put_pixel(1, 0, Rgb([10, 20, 30]));
        encoded(picture, ImageFormat::Png)
    }

    #[test]
    fn shapes_choose_the_layout() {
        use Order::{ChannelsFirst, ChannelsLast, NoChannels};
        for (shape, batched, lead, order, grey) in [
            (&[-1, 1, 8, 8][..], Some(true), 1, ChannelsFirst, true),
            (&[-1, 3, 224, 224], None, 1, ChannelsFirst, false),
            (&[1, 3, 224, 224], Some(false), 1, ChannelsFirst, false),
            (&[-1, 224, 224, 3], Some(true), 1, ChannelsLast, false),
            (&[3, 224, 224], Some(false), 0, ChannelsFirst, false),
            (&[-1, -1, 3], Some(false), 0, ChannelsLast, false),
            (&[-1, -1, -1], Some(false), 0, ChannelsFirst, false),
            (&[-1, 28, 28], None, 1, NoChannels, true),
            (&[-1, 28, 28], Some(true), 1, NoChannels, true),
            (&[28, 28], Some(false), 0, NoChannels, true),
            (&[-1, 1, 3, 8, 8], Some(true), 2, ChannelsFirst, false),
        ] {
            let layout = Layout::new(Some(shape), batched).unwrap();
            assert_eq!((layout.lead, layout.order, layout.grey), (lead, order, grey), "{shape:?}");
        }
        for shape in [&[16][..], &[-1, 16], &[5, 8, 8], &[3, 0, 8], &[3, i64::MAX, 8], &[1, 1, 1, 1, 1, 1]] {
            assert_eq!(Layout::new(Some(shape), Some(true)), None, "{shape:?}");
        }
    }

    #[test]
    fn channels_go_first_or_last() {
        let array_of = |shape: &[i64]| array(&two(), DataType::Uint8, Some(shape), Some(false)).unwrap();
        let first = array_of(&[3, 1, 2]);
        assert_eq!((&first.shape[..], &first.data[..]), (&[3, 1, 2][..], &[255, 10, 0, 20, 0, 30][..]));
        let last = array_of(&[1, 2, 3]);
        assert_eq!(last.shape, [1, 2, 3], "a first dimension of 1 is read as one channel");
        let last = array_of(&[-1, -1, 3]);
        assert_eq!((&last.shape[..], &last.data[..]), (&[1, 2, 3][..], &[255, 0, 0, 10, 20, 30][..]));
    }

    #[test]
    fn floating_point_is_zero_to_one() {
        let array = array(&two(), DataType::Fp32, Some(&[-1, 3, 1, 2]), Some(true)).unwrap();
        assert_eq!(array.shape, [1, 3, 1, 2]);
        let values: Vec<f32> =
            array.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(values, [1.0, 10.0 / 255.0, 0.0, 20.0 / 255.0, 0.0, 30.0 / 255.0]);
    }

    #[test]
    fn pictures_are_resized_and_made_grey() {
        let picture = GrayImage::from_fn(64, 32, |x, _| Luma([if x < 32 { 0 } else { 200 }]));
        let file = encoded(picture, ImageFormat::Png);
        let array = array(&file, DataType::Uint8, Some(&[-1, 1, 2, 4]), Some(true)).unwrap();
        assert_eq!(array.shape, [1, 1, 2, 4]);
        let row = &array.data[..4];
        assert!(row[0] < 20 && row[3] > 180 && row[1] < row[2], "{row:?}");
    }

    #[test]
    fn transparency_is_dropped_and_jpeg_is_read() {
        let picture = RgbaImage::from_pixel(3, 3, Rgba([1, 2, 3, 0]));
        let open = array(&encoded(picture, ImageFormat::Png), DataType::Fp32, None, None).unwrap();
        assert_eq!(open.shape, [1, 3, 3, 3]);
        let picture = RgbImage::from_pixel(8, 8, Rgb([128; 3]));
        let jpeg = array(&encoded(picture, ImageFormat::Jpeg), DataType::Uint8, Some(&[8, 8]), None).unwrap();
        assert!(jpeg.data.iter().all(|&pixel| pixel.abs_diff(128) <= 2));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let mut cut = two();
        cut.truncate(40);
        for file in [&b""[..], b"no picture", &cut] {
            assert!(array(file, DataType::Fp32, None, None).is_err());
        }
        assert!(array(&two(), DataType::Bool, None, None).unwrap_err().contains("BOOL"));
        assert!(array(&two(), DataType::Fp32, Some(&[16]), None).unwrap_err().contains("[16]"));
        let huge = array(&two(), DataType::Uint8, Some(&[3, 2_000_000, 2_000_000]), Some(false));
        assert!(huge.unwrap_err().contains("too large"));
    }
}
