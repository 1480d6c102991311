package sink_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/sink"
)

var op = sink.Operation{Client: "tester", Reason: "because"}

// lane is the only lane in use.
func (b *bed) lane() sink.LaneStatus {
	b.Helper()
	all, err := b.sink.InUse(b.Context(), []string{lane.Topic})
	require.NoError(b, err)
	require.Len(b, all, 1)
	return all[0]
}

// stored makes a lane with n rows.
func (b *bed) stored(n int) sink.Claim {
	c := b.claim()
	_, err := b.sink.Append(b.Context(), batch(c, n))
	require.NoError(b, err)
	c.Next += int64(n)
	return c
}

// TestAcceptALogThatWasCut: the offsets from the cut on are used again, for other records; so they belong to another lane.
func TestAcceptALogThatWasCut(t *testing.T) {
	onBoth(t, func(b *bed) {
		for _, start := range []int64{0, 6, 15} {
			log := sink.Log{Start: start, Known: 6}
			c := b.stored(10)
			require.NoError(b, b.sink.Halt(b.Context(), c, "worker", "the log was cut"))
			o, err := sink.Accept(b.Context(), b.pool, b.lane(), log, op)
			require.NoError(b, err)
			require.Equal(b, max(6, start), o.NextOffset)
			require.NotZero(b, o.Successor)
			require.Equal(b, max(6, start)-6, b.number(`SELECT coalesce(sum(to_offset - from_offset), 0) FROM audit_gap WHERE kind = 'retention' AND from_offset = 6 AND lane_id = $1`, o.Successor))
			require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_lane WHERE lane_id = $1 AND state = 'retired' AND next_offset = 10`, c.LaneID))

			_, err = b.sink.Append(b.Context(), batch(c, 1))
			var fenced *sink.FencedError
			require.ErrorAs(b, err, &fenced, "whoever had the retired lane can't go on with it")

			next, err := b.sink.Claim(b.Context(), lane, "g", "worker")
			require.NoError(b, err)
			require.Equal(b, o.Successor, next.LaneID)
			require.Equal(b, max(6, start), next.Next)
			_, err = b.sink.Append(b.Context(), batch(next, 4))
			require.NoError(b, err)
			require.Zero(b, b.number(`SELECT count(*) FROM (SELECT FROM audit_log GROUP BY lane_id, lane_offset HAVING count(*) > 1) twice`))
			_, err = b.pool.Exec(b.Context(), `TRUNCATE audit_log, audit_lane, audit_gap`)
			require.NoError(b, err)
		}
	})
}

func TestAcceptATopicMadeAgain(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.stored(10)
		again := lane
		again.TopicID = [16]byte{2}
		_, err := b.sink.Claim(b.Context(), again, "g", "worker")
		var refused *sink.RefusedError
		require.ErrorAs(b, err, &refused)
		old := b.lane()
		require.Equal(b, "halted", old.State, "it is on record at once, for lanes list")
		require.Contains(b, old.Reason, "created again")

		outcomes, err := sink.AcceptTopic(b.Context(), b.pool, []sink.LaneStatus{old}, again.TopicID, map[int32]sink.Log{3: {Start: 2, Known: 9}, 4: {}}, op)
		require.NoError(b, err)
		require.Len(b, outcomes, 1)
		require.Equal(b, c.LaneID, outcomes[0].LaneID)
		_, err = sink.AcceptTopic(b.Context(), b.pool, []sink.LaneStatus{old}, [16]byte{3}, map[int32]sink.Log{3: {}}, op)
		require.ErrorIs(b, err, sink.ErrChanged, "a second operator")

		next, err := b.sink.Claim(b.Context(), again, "g", "worker")
		require.NoError(b, err)
		require.Equal(b, outcomes[0].Successor, next.LaneID)
		require.EqualValues(b, 2, next.Next)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap WHERE lane_id = $1 AND kind = 'retention' AND from_offset = 0 AND to_offset = 2`, next.LaneID))
		again.Partition = 4
		_, err = b.sink.Claim(b.Context(), again, "g", "worker")
		require.NoError(b, err)

		// A worker that is behind the times must not halt the lanes of the new topic.
		_, err = b.sink.Claim(b.Context(), lane, "g", "worker")
		require.ErrorAs(b, err, &refused)
		require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_lane WHERE state = 'active'`))
	})
}

func TestReset(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.stored(10)
		reset := func(to int64) error {
			_, err := sink.Reset(b.Context(), b.pool, c.LaneID, to, op)
			return err
		}

		require.NoError(b, reset(25))
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap WHERE kind = 'skipped' AND from_offset = 10 AND to_offset = 25`))
		_, err := b.sink.Append(b.Context(), batch(c, 5))
		var fenced *sink.FencedError
		require.ErrorAs(b, err, &fenced)
		b.holds(10, 0, 25)

		require.NoError(b, reset(10), "nothing from there on is stored")
		var above *sink.StoredAboveError
		require.ErrorAs(b, reset(9), &above)
		require.EqualValues(b, 9, above.Stored)
		b.holds(10, 0, 10)

		c = b.claim()
		require.NoError(b, b.sink.Halt(b.Context(), c, "worker", "stuck"))
		require.NoError(b, reset(11))
		require.Equal(b, "active", b.lane().State)
		require.EqualValues(b, 3, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'reset' AND reason = 'because'`))
		require.EqualValues(b, 11, b.claim().Next)

		// A quarantined record is stored as well.
		records := events(11, 1)
		records[0].Value = []byte("no event")
		_, err = b.sink.Append(b.Context(), &sink.Batch{Claim: b.claim(), To: 12, Records: records})
		require.NoError(b, err)
		require.ErrorAs(b, reset(11), &above)
	})
}

// TestGapIsStoredOnce: with the position, like a batch.
func TestGapIsStoredOnce(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.stored(10)
		for range 2 {
			_, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 40, LeaderEpoch: 7, Gap: sink.GapRetention})
			require.NoError(b, err)
		}
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap WHERE kind = 'retention' AND from_offset = 10 AND to_offset = 40`))
		b.holds(10, 0, 40)
		c.Epoch--
		c.Next = 40
		_, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 50, Gap: sink.GapRetention})
		var fenced *sink.FencedError
		require.ErrorAs(b, err, &fenced)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap`))
	})
}

// TestAcceptByMistake: a topic taken for gone, or for another, that is still the same is not stored a second time.
func TestAcceptByMistake(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.stored(10)
		retire := func() {
			_, err := sink.AcceptTopic(b.Context(), b.pool, []sink.LaneStatus{b.lane()}, [16]byte{}, nil, op)
			require.NoError(b, err)
		}
		retire()
		require.NoError(b, b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", []sink.Start{{Partition: lane.Partition}}))
		require.EqualValues(b, 10, b.lane().NextOffset)
		c := b.claim()
		_, err := b.sink.Append(b.Context(), batch(c, 5))
		require.NoError(b, err)

		_, err = sink.AcceptTopic(b.Context(), b.pool, []sink.LaneStatus{b.lane()}, [16]byte{9}, map[int32]sink.Log{3: {}}, op)
		require.NoError(b, err)
		_, err = sink.AcceptTopic(b.Context(), b.pool, []sink.LaneStatus{b.lane()}, lane.TopicID, map[int32]sink.Log{3: {Start: 2, Known: 40}}, op)
		require.NoError(b, err)
		require.EqualValues(b, 15, b.lane().NextOffset)
		retire()
		require.NoError(b, b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", []sink.Start{{Partition: lane.Partition, Offset: 20, LogStart: 18}}))
		require.EqualValues(b, 18, b.lane().NextOffset)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap`))
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap WHERE kind = 'retention' AND from_offset = 15 AND to_offset = 18`))
	})
}
