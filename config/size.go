package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes.
type Size int64

// units from the largest: a size is shown in the first that divides it.
var units = []struct {
	suffix string
	bytes  Size
}{
	{"GiB", 1 << 30},
	{"GB", 1e9},
	{"MiB", 1 << 20},
	{"MB", 1e6},
	{"KiB", 1 << 10},
	{"kB", 1e3},
	{"", 1}, // any number has this suffix
}

// Decode reads a whole number of bytes, or of a unit: KiB, MiB, GiB (powers of 1024), kB, MB, GB (powers of 1000).
// It is what envconfig calls.
func (s *Size) Decode(text string) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil {
			return fmt.Errorf("read a size: %w", err)
		}
		if Size(n) > math.MaxInt64/u.bytes {
			return fmt.Errorf("read a size: %w", strconv.ErrRange)
		}
		*s = Size(n) * u.bytes
		break
	}
	return nil
}

// String is the size in the form that Decode reads.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.suffix
		}
	}
	return "0"
}
