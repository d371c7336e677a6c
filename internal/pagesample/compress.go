package pagesample

import "github.com/klauspost/compress/zstd"

// compressedPages is how many pages are compressed at most: the ratio of 128 pages that
// differ as much as can be is off by less than a tenth, and takes some milliseconds.
const compressedPages = 128

// Compress gives the share of its size that is left of data, compressed as one piece by
// zstd at its fastest; 0 of none. Pages that are neighbours compress better than those
// of a sample, which have less in common.
func Compress(data []byte) float64 {
	if len(data) == 0 {
		return 0
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	defer encoder.Close()
	return float64(len(encoder.EncodeAll(data, nil))) / float64(len(data))
}
