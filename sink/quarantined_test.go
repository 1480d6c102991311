package sink_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/event"
	"auditsink/internal/testkit"
	"auditsink/sink"
)

// another is the URL of an empty database on the same version of Postgres.
func (b *bed) another() string {
	version := b.number(`SELECT current_setting('server_version_num')::int / 10000`)
	return testkit.Postgres(b.T, int(version))
}

// listed are the offsets of the records that a filter chooses, as they are listed.
func (b *bed) listed(f sink.Filter, limit int) (offsets []int64) {
	b.Helper()
	require.NoError(b, sink.ListQuarantine(b.Context(), b.pool, f, limit, func(q sink.Quarantined) error {
		offsets = append(offsets, q.Offset)
		return nil
	}))
	return offsets
}

func TestFilters(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		records := events(0, 6)
		records[2].Value = nil // empty
		records[3].Value = []byte{}
		b.quarantine(c, records)
		other := sink.Lane{Topic: "other", TopicID: [16]byte{2}}
		require.NoError(b, b.sink.Register(b.Context(), other.Topic, other.TopicID, "g", []sink.Start{{}}))
		c2, err := b.sink.Claim(b.Context(), other, "g", "worker")
		require.NoError(b, err)
		b.quarantine(c2, events(0, 1))
		_, err = b.pool.Exec(b.Context(), `UPDATE audit_quarantine SET recorded_at = '2026-11-01T00:00:00Z'::timestamptz + lane_offset * interval '1 hour' WHERE lane_id = $1`, c.LaneID)
		require.NoError(b, err)
		at := func(hour int) time.Time { return time.Date(2026, 11, 1, hour, 0, 0, 0, time.UTC) }
		ids := map[int64]int64{}
		require.NoError(b, sink.ListQuarantine(b.Context(), b.pool, sink.Filter{Lanes: []int32{c.LaneID}}, 0, func(q sink.Quarantined) error {
			ids[q.Offset] = q.ID
			return nil
		}))
		for name, c := range map[string]struct {
			filter sink.Filter
			limit  int
			want   []int64
		}{
			"all":                {sink.Filter{}, 0, []int64{0, 5, 4, 3, 2, 1, 0}},
			"the newest":         {sink.Filter{}, 3, []int64{0, 5, 4}},
			"a reason":           {sink.Filter{Reasons: []string{"empty"}}, 0, []int64{3, 2}},
			"two reasons":        {sink.Filter{Reasons: []string{"empty", "too_large"}, Topic: "audit"}, 0, []int64{5, 4, 3, 2, 1, 0}},
			"a lane":             {sink.Filter{Lanes: []int32{c2.LaneID}}, 0, []int64{0}},
			"a topic":            {sink.Filter{Topic: "other"}, 0, []int64{0}},
			"no such topic":      {sink.Filter{Topic: "none"}, 0, nil},
			"since is included":  {sink.Filter{Since: at(4), Topic: "audit"}, 0, []int64{5, 4}},
			"until is not":       {sink.Filter{Until: at(2)}, 0, []int64{1, 0}},
			"IDs":                {sink.Filter{IDs: []int64{ids[1], ids[4], -7}}, 0, []int64{4, 1}},
			"all of it with AND": {sink.Filter{IDs: []int64{ids[1], ids[3]}, Reasons: []string{"empty"}, Since: at(1), Until: at(4), State: "new"}, 0, []int64{3}},
			"a state":            {sink.Filter{State: "redriven"}, 0, nil},
		} {
			require.Equal(b, c.want, b.listed(c.filter, c.limit), name)
		}
		counts, err := sink.CountQuarantine(b.Context(), b.pool, sink.Filter{State: "new"})
		require.NoError(b, err)
		require.Equal(b, []sink.QuarantineCount{{"too_large", "new", 5}, {"empty", "new", 2}}, counts)

		// What changes records takes the same filters, and of the rest none.
		op := b.operator("op")
		op.Filter = sink.Filter{Lanes: []int32{c.LaneID}, Since: at(1)}
		op.Limit = 2
		done, err := b.sink.Redrive(b.Context(), op)
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Moved: 1, Kept: map[string]int64{"empty": 1}}, done)
		require.Equal(b, []int64{1}, b.listed(sink.Filter{State: "redriven"}, 0))
		op.Limit, op.Filter = 0, sink.Filter{Reasons: []string{"empty"}}
		done, err = sink.Discard(b.Context(), b.pool, op)
		require.NoError(b, err)
		require.EqualValues(b, 2, done.Moved)
		require.Equal(b, []int64{3, 2}, b.listed(sink.Filter{State: "discarded"}, 0))
		require.Equal(b, []int64{0, 5, 4, 0}, b.listed(sink.Filter{State: "new"}, 0))
	})
}

// TestListIsReadInPages: no record is missed or told twice where pages meet.
func TestListIsReadInPages(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.quarantine(b.claim(), events(0, 1201))
		for _, limit := range []int{0, 1, 499, 500, 501, 1000, 1201, 5000} {
			got := b.listed(sink.Filter{}, limit)
			want := 1201
			if limit > 0 {
				want = min(limit, 1201)
			}
			require.Len(b, got, want)
			for i, offset := range got {
				require.EqualValues(b, 1200-i, offset)
			}
		}
	})
}

func TestShow(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		at := time.Now().UTC().Truncate(time.Millisecond)
		b.quarantine(c, []event.Record{
			{Offset: 0, Timestamp: at.UnixMilli(), Key: []byte("k\x00\xff"), Value: []byte("\xff{"), Headers: []event.Header{
				{Key: "h", Value: []byte("v")}, {Key: "h", Value: nil}, {Key: "\xff", Value: []byte{0}}, {Key: "", Value: []byte{}},
			}},
			{Offset: 1, Timestamp: -1},
		})
		var ids []int64
		require.NoError(b, sink.ListQuarantine(b.Context(), b.pool, sink.Filter{}, 0, func(q sink.Quarantined) error {
			ids = append(ids, q.ID)
			return nil
		}))
		r, err := sink.ShowQuarantined(b.Context(), b.pool, ids[1])
		require.NoError(b, err)
		require.Equal(b, []sink.QuarantinedHeader{{[]byte("h"), []byte("v")}, {[]byte("h"), nil}, {[]byte("\xff"), []byte{0}}, {[]byte{}, []byte{}}}, r.Headers)
		require.Equal(b, []byte("k\x00\xff"), r.Key)
		require.Equal(b, []byte("\xff{"), r.Value)
		require.Equal(b, at, *r.RecordTimestamp)
		require.Equal(b, "audit", *r.Topic)
		require.EqualValues(b, 3, *r.Partition)
		require.Equal(b, "01000000-0000-0000-0000-000000000000", *r.TopicID)
		require.EqualValues(b, 2, *r.ValueBytes)
		require.Equal(b, "new", r.State)
		require.Empty(b, r.Changes)

		op := b.operator("op@host/1")
		op.Filter.IDs = ids[:1]
		_, err = sink.Discard(b.Context(), b.pool, op)
		require.NoError(b, err)
		_, err = b.pool.Exec(b.Context(), `DELETE FROM audit_lane`)
		require.NoError(b, err)
		r, err = sink.ShowQuarantined(b.Context(), b.pool, ids[0])
		require.NoError(b, err)
		require.Nil(b, r.Value)
		require.Nil(b, r.Key)
		require.Nil(b, r.RecordTimestamp)
		require.Nil(b, r.Topic, "the lane is gone")
		require.Nil(b, r.ValueBytes)
		require.Equal(b, "discarded", r.State)
		require.Len(b, r.Changes, 1)
		require.WithinDuration(b, time.Now(), r.Changes[0].RecordedAt, time.Hour)
		r.Changes[0].RecordedAt = time.Time{}
		require.Equal(b, sink.QuarantineChange{Kind: "discarded", Reason: "because op@host/1", Client: "op@host/1", DoneBy: "postgres"}, r.Changes[0])

		_, err = sink.ShowQuarantined(b.Context(), b.pool, 12345)
		var unknown *sink.UnknownIDError
		require.ErrorAs(b, err, &unknown)
		require.ErrorContains(b, err, "12345")
	})
}

// TestDiscardAndRedriveAtOnce: each record goes one way.
func TestDiscardAndRedriveAtOnce(t *testing.T) {
	onBoth(t, func(b *bed) {
		const n = 1500
		b.quarantine(b.claim(), events(0, n))
		values := b.number(`SELECT sum(octet_length(value)) FROM audit_quarantine`)
		var redriven, discarded sink.Changed
		var group errgroup.Group
		group.Go(func() (err error) {
			redriven, err = b.sink.Redrive(b.Context(), b.operator("one"))
			return err
		})
		group.Go(func() (err error) {
			discarded, err = sink.Discard(b.Context(), b.pool, b.operator("another"))
			return err
		})
		require.NoError(b, group.Wait())
		require.EqualValues(b, n, redriven.Moved+discarded.Moved)
		require.Equal(b, redriven.Moved, b.number(`SELECT count(*) FROM audit_log`))
		require.Equal(b, discarded.Moved, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'discarded'`))
		require.EqualValues(b, n, b.number(`SELECT count(DISTINCT quarantine_id) FROM audit_lane_event`))
		require.EqualValues(b, n, b.number(`SELECT count(*) FROM audit_lane_event`))
		require.Equal(b, values, b.number(`SELECT sum(octet_length(value)) FROM audit_quarantine`), "the bytes stay")
	})
}

func TestDryRunsChangeNothing(t *testing.T) {
	onBoth(t, func(b *bed) {
		records := events(0, 5)
		records[3].Value = []byte("{")
		b.quarantine(b.claim(), records)
		const fingerprint = `SELECT hashtextextended(string_agg(q::text || xmin || xmax, ',' ORDER BY id), 0) FROM audit_quarantine q`
		before := b.number(fingerprint)
		op := b.operator("op")
		op.DryRun = true
		done, err := b.sink.Redrive(b.Context(), op)
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Moved: 4, Kept: map[string]int64{"invalid_json": 1}}, done)
		done, err = sink.Discard(b.Context(), b.pool, op)
		require.NoError(b, err)
		require.EqualValues(b, 5, done.Moved)
		require.Equal(b, before, b.number(fingerprint), "not even a lock was taken")
		b.redriven(0)
	})
}

func TestCheckIDs(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.quarantine(b.claim(), events(0, 3))
		var ids []int64
		require.NoError(b, sink.ListQuarantine(b.Context(), b.pool, sink.Filter{}, 0, func(q sink.Quarantined) error {
			ids = append(ids, q.ID)
			return nil
		}))
		op := b.operator("op")
		op.Filter.IDs = ids[:1]
		_, err := sink.Discard(b.Context(), b.pool, op)
		require.NoError(b, err)
		already, err := sink.CheckIDs(b.Context(), b.pool, ids, "discarded")
		require.NoError(b, err)
		require.Equal(b, ids[:1], already)
		_, err = sink.CheckIDs(b.Context(), b.pool, ids, "redriven")
		var other *sink.NotNewError
		require.ErrorAs(b, err, &other)
		require.ErrorContains(b, err, fmt.Sprintf("already discarded: record %d; nothing was done", ids[0]))
		_, err = sink.CheckIDs(b.Context(), b.pool, append(ids, 77, 76, 77), "discarded")
		var unknown *sink.UnknownIDError
		require.ErrorAs(b, err, &unknown)
		require.Equal(b, []int64{76, 77}, unknown.IDs)
	})
}

// TestTimestampThatNoColumnHolds is told in the detail alone, and so stays there whatever the reason is.
func TestTimestampThatNoColumnHolds(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.quarantine(b.claim(), []event.Record{{Offset: 0, Timestamp: 9_300_000_000_000_000, Value: []byte("[1]")}})
		for range 2 {
			_, err := b.sink.Redrive(b.Context(), b.operator("op"))
			require.NoError(b, err)
			require.NoError(b, sink.ListQuarantine(b.Context(), b.pool, sink.Filter{}, 0, func(q sink.Quarantined) error {
				require.Equal(b, "not_an_object", q.Reason)
				require.True(b, strings.HasSuffix(q.Detail, " (the record's timestamp, 9300000000000000 ms, is beyond what its column holds)"), q.Detail)
				require.Equal(b, 1, strings.Count(q.Detail, "9300000000000000"))
				return nil
			}))
		}
	})
}
