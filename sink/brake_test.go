package sink

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBrakeNeedsBothMeasures(t *testing.T) {
	now := time.Now()
	var b brake
	for _, c := range []struct {
		refused, records int
		trips            bool
	}{
		{101, 101, true},
		{100, 100, false}, // all of them, yet not over 100
		{500, 5000, false},
		{501, 5000, true},
		{101, 1010, false}, // a tenth is not over a tenth
		{101, 1009, true},
	} {
		require.Equal(t, c.trips, b.trips(1, now, c.refused, c.records), "%d of %d", c.refused, c.records)
	}
}

func TestBrakeRemembersAMinuteOfEachLane(t *testing.T) {
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	var b brake
	b.add(1, at(0), 60)
	b.add(1, at(30), 30)
	b.add(2, at(30), 5)
	require.True(t, b.trips(1, at(40), 11, 20), "60 and 30 and 11 are over 100")
	require.False(t, b.trips(1, at(40), 10, 20))
	require.False(t, b.trips(2, at(40), 11, 20), "another lane's don't count")
	require.True(t, b.trips(1, at(60), 11, 20), "a minute is not over a minute")
	require.False(t, b.trips(1, at(61), 70, 80), "the 60 are forgotten")
	require.True(t, b.trips(1, at(61), 71, 80))

	b.add(3, at(91), 0)
	require.Empty(t, b.lanes, "old refusals of all lanes are dropped, and a batch without any leaves none")
}
