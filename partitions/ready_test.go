package partitions_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/partitions"
)

func TestReadyUntil(t *testing.T) {
	day := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	span := func(from, to int) partitions.Bounds { return partitions.Bounds{From: day(from), To: day(to)} }
	now := day(5).Add(time.Hour)
	for name, c := range map[string]struct {
		existing []partitions.Bounds
		want     time.Time
	}{
		"none":               {nil, now},
		"without a hole":     {[]partitions.Bounds{span(8, 9), span(5, 8), span(1, 5)}, day(9)},
		"up to a hole":       {[]partitions.Bounds{span(1, 6), span(7, 9)}, day(6)},
		"not even now":       {[]partitions.Bounds{span(1, 5), span(7, 9)}, now},
		"without an end":     {[]partitions.Bounds{{From: day(1)}}, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)},
		"default is no help": {[]partitions.Bounds{{Default: true}}, now},
		"nor what detaches":  {[]partitions.Bounds{span(1, 6), {From: day(6), To: day(9), Detaching: true}}, day(6)},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, partitions.ReadyUntil(now, c.existing)) })
	}
}
