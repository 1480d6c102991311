package config

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSizeDecode(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "1048576": 1 << 20,
		"1kB": 1000, "2MB": 2e6, "3GB": 3e9,
		"1KiB": 1024, "8MiB": 8 << 20, "2GiB": 2 << 30,
		"9223372036854775807": math.MaxInt64, "8589934591GiB": 8589934591 << 30,
	} {
		var got Size
		require.NoError(t, got.Decode(text), text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "MiB", "-1", "+1", "1.5MiB", "1 MiB", " 1", "1mib", "1KB", "1K", "1B", "0x10", "1_000", "9223372036854775808", "8589934592GiB", "99999999999999999999kB"} {
		got := Size(42)
		require.Error(t, got.Decode(text), text)
		require.Equal(t, Size(42), got, text)
	}
}

func TestSizeString(t *testing.T) {
	for size, want := range map[Size]string{0: "0", 1: "1", 1000: "1kB", 1024: "1KiB", 1536: "1536", 8 << 20: "8MiB", 5e6: "5MB", 1 << 40: "1024GiB"} {
		require.Equal(t, want, size.String())
	}
	rapid.Check(t, func(t *rapid.T) {
		size := Size(rapid.Int64Min(0).Draw(t, "digits"))
		if unit := rapid.SampledFrom(units).Draw(t, "unit").bytes; size < math.MaxInt64/unit {
			size *= unit
		}
		var got Size
		require.NoError(t, got.Decode(size.String()))
		require.Equal(t, size, got)
	})
}
