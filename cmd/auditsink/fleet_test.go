package main

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/fleet"
	"auditsink/metrics"
)

// TestReplicaFigures: what a replica tells is of the time since it told last, and it isn't ready for the reason that /readyz gives.
func TestReplicaFigures(t *testing.T) {
	m, state := metrics.New("v1", event.Reasons()), &readiness{}
	state.set("waiting for Postgres")
	start := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	r := &replica{metrics: m, state: state, before: metrics.Sample{At: start}, about: fleet.Figures{Instance: "host/1/A"}}
	figures := func(seconds int) fleet.Figures {
		t.Helper()
		f, err := r.figures(start.Add(time.Duration(seconds) * time.Second))
		require.NoError(t, err)
		return f
	}
	m.RowsInserted.Add(1000)
	f := figures(10)
	require.Equal(t, []any{"host/1/A", false, "waiting for Postgres", 100.0}, []any{f.Instance, f.Ready, f.NotReady, f.RowsPerSecond})
	state.follow(func() error { return nil })
	m.RowsInserted.Add(10)
	f = figures(15)
	require.Equal(t, []any{true, "", 2.0}, []any{f.Ready, f.NotReady, f.RowsPerSecond})
	require.Zero(t, figures(20).RowsPerSecond)
	state.follow(func() error { return errors.New("gone") })
	require.Equal(t, "gone", figures(25).NotReady)
}

// TestZombie: of two replicas that say they have a lane, the one that audit_lane names has it.
func TestZombie(t *testing.T) {
	lane := fleet.Lane{Topic: "events", Partition: 0}
	replica := func(owner string, lag int64) fleet.Figures {
		l := lane
		l.Lag = &fleet.Lag{Records: lag}
		return fleet.Figures{Instance: owner + "/A", Owner: owner, Lanes: []fleet.Lane{l}}
	}
	for _, order := range [][]fleet.Figures{{replica("host/1", 100), replica("host/2", 2)}, {replica("host/2", 2), replica("host/1", 100)}} {
		s := &status{Group: "g", Lanes: statusLanes{Source: fromPostgres, Items: []statusLane{{Lane: lane, Group: "g", State: laneActive, Owner: "host/2"}}}}
		s.Replicas = statusReplicas{Source: fromRedis, Items: order}
		s.own()
		require.Len(t, s.Lanes.Items, 1)
		require.Equal(t, "host/2/A", s.Lanes.Items[0].Instance)
		require.EqualValues(t, 2, s.Lanes.Items[0].Lag.Records)
	}
	// Where only one says so, it is taken at its word.
	s := &status{Group: "g", Lanes: statusLanes{Source: fromPostgres, Items: []statusLane{{Lane: lane, Group: "g", State: laneActive, Owner: "host/2"}}}}
	s.Replicas = statusReplicas{Source: fromRedis, Items: []fleet.Figures{replica("host/1", 100)}}
	s.own()
	require.Equal(t, "host/1/A", s.Lanes.Items[0].Instance, "audit_lane learns of an owner with its claim")
}
