package sink_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/sink"
)

func TestClaimNeedsARegisteredLane(t *testing.T) {
	onBoth(t, func(b *bed) {
		_, err := b.sink.Claim(b.Context(), lane, "g", "worker")
		require.ErrorIs(b, err, sink.ErrUnregistered)
	})
}

func TestLanesBeginWhereTheySay(t *testing.T) {
	onBoth(t, func(b *bed) {
		register := func(starts ...sink.Start) {
			require.NoError(b, b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", starts))
		}
		begins := func(partition int32, at int64) {
			b.Helper()
			l := lane
			l.Partition = partition
			c, err := b.sink.Claim(b.Context(), l, "g", "worker")
			require.NoError(b, err)
			require.Equal(b, at, c.Next)
		}
		register(sink.Start{Partition: 0, Offset: 5, LogStart: 5}, sink.Start{Partition: 1, Offset: 40, LogStart: 10}, sink.Start{Partition: 3, Offset: 7, LogStart: 9})
		begins(0, 5)
		begins(1, 40)
		begins(3, 9)
		require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_gap`))
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap g JOIN audit_lane USING (lane_id)
			WHERE partition = 3 AND kind = 'retention' AND from_offset = 7 AND to_offset = 9`))
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap g JOIN audit_lane USING (lane_id)
			WHERE partition = 1 AND kind = 'start' AND from_offset = 10 AND to_offset = 40`))

		// Known lanes stay where they are; one added later begins at the start of its log.
		register(sink.Start{Partition: 1, Offset: 99, LogStart: 99}, sink.Start{Partition: 2, Offset: 70, LogStart: 3})
		begins(1, 40)
		begins(2, 3)
		require.EqualValues(b, 3, b.number(`SELECT count(*) FROM audit_gap`))
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap g JOIN audit_lane USING (lane_id)
			WHERE partition = 2 AND kind = 'retention' AND from_offset = 0 AND to_offset = 3`))
	})
}

func TestManyWorkersMeetANewTopic(t *testing.T) {
	onBoth(t, func(b *bed) {
		var all sync.WaitGroup
		errs := make(chan error, 10)
		for range 10 {
			all.Go(func() {
				errs <- b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", []sink.Start{{Partition: 0, Offset: 8}, {Partition: 1, Offset: 9}})
			})
		}
		all.Wait()
		close(errs)
		for err := range errs {
			require.NoError(b, err)
		}
		require.EqualValues(b, 17, b.number(`SELECT sum(next_offset) FROM audit_lane`))
		require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_gap`))
	})
}

func TestRefusedClaims(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		var refused *sink.RefusedError

		_, err := b.sink.Claim(b.Context(), lane, "other group", "worker")
		require.ErrorAs(b, err, &refused)
		require.ErrorContains(b, err, `"g"`)
		require.ErrorContains(b, err, `"other group"`)

		again := lane
		again.TopicID = [16]byte{2}
		_, err = b.sink.Claim(b.Context(), again, "g", "worker")
		require.ErrorAs(b, err, &refused)
		require.ErrorContains(b, err, "created again")

		// Nor through a partition that only the new topic has, or that came later.
		more := []sink.Start{{Partition: lane.Partition}, {Partition: lane.Partition + 1}}
		for _, l := range []sink.Lane{again, lane} {
			l.Partition++
			group := "g"
			if l.TopicID == lane.TopicID {
				group = "other group"
			}
			_, err = b.sink.Claim(b.Context(), l, group, "worker")
			require.ErrorAs(b, err, &refused)
			require.ErrorAs(b, b.sink.Register(b.Context(), l.Topic, l.TopicID, group, more), &refused)
		}
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_lane`))

		// None of it touched the lane.
		_, err = b.sink.Append(b.Context(), batch(c, 1))
		require.NoError(b, err)
	})
}

func TestHaltIsOnRecord(t *testing.T) {
	onBoth(t, func(b *bed) {
		old := b.claim()
		c := b.claim()
		require.NoError(b, b.sink.Halt(b.Context(), old, "worker", "late"))
		require.Equal(b, "active", b.lane().State, "a claim that has ended says nothing")
		require.Zero(b, b.number(`SELECT count(*) FROM audit_lane_event`))
		require.NoError(b, b.sink.Halt(b.Context(), c, "worker", "a trigger drops rows"))
		require.NoError(b, b.sink.Halt(b.Context(), c, "worker", "again"))
		require.Equal(b, "halted", b.lane().State)
		require.Equal(b, "a trigger drops rows", b.lane().Reason)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'halted' AND client = 'worker' AND done_by = session_user`))

		_, err := b.sink.Claim(b.Context(), lane, "g", "another")
		var refused *sink.RefusedError
		require.ErrorAs(b, err, &refused)
		require.ErrorContains(b, err, "a trigger drops rows")
		require.ErrorContains(b, err, "auditsink lanes accept")

		o, err := sink.Accept(b.Context(), b.pool, b.lane(), sink.Log{Known: 10}, op)
		require.NoError(b, err)
		require.Equal(b, sink.Outcome{LaneID: c.LaneID}, o)
		next := b.claim()
		require.Equal(b, c.Epoch+2, next.Epoch)
		require.Equal(b, c.LaneID, next.LaneID)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'accepted' AND reason = 'because' AND client = 'tester'`))
	})
}
