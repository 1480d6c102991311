package hashing

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAppendTimestamp(t *testing.T) {
	cases := map[int64]string{
		0:                          "1970-01-01T00:00:00.000Z",
		999:                        "1970-01-01T00:00:00.000Z",
		1000:                       "1970-01-01T00:00:00.001Z",
		-1:                         "1969-12-31T23:59:59.999Z",
		-1000:                      "1969-12-31T23:59:59.999Z",
		-1001:                      "1969-12-31T23:59:59.998Z",
		1_774_536_902_855_999:      "2026-03-26T14:55:02.855Z",
		-62_167_219_200_000_000:    "0000-01-01T00:00:00.000Z",
		-62_167_219_200_000_001:    "-000001-12-31T23:59:59.999Z",
		253_402_300_799_999_999:    "9999-12-31T23:59:59.999Z",
		253_402_300_800_000_000:    "+010000-01-01T00:00:00.000Z",
		8_640_000_000_000_000_000:  "+275760-09-13T00:00:00.000Z", // the last instant of ECMAScript
		-8_640_000_000_000_000_000: "-271821-04-20T00:00:00.000Z",
		1_709_210_096_789_000:      "2024-02-29T12:34:56.789Z",
	}
	for micro, want := range cases {
		require.Equal(t, want, string(AppendTimestamp(nil, micro)))
	}
	require.Len(t, "before 1970-01-01T00:00:00.000Z", len(AppendTimestamp([]byte("before "), 0)))
}

func FuzzAppendTimestamp(f *testing.F) {
	f.Add(int64(0))
	f.Add(int64(-1))
	f.Add(int64(math.MaxInt64))
	f.Add(int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, micro int64) {
		got := string(AppendTimestamp(nil, micro))
		at := time.UnixMicro(micro).UTC()
		if at.Year() < 0 || at.Year() > 9999 {
			if got[0] != '+' && got[0] != '-' || len(got) != TimestampLen+3 {
				t.Fatal(got)
			}
			return
		}
		if want := at.Format("2006-01-02T15:04:05.000Z"); got != want {
			t.Fatalf("want %s, got %s", want, got)
		}
	})
}
