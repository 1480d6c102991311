package sink_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/sink"
)

func errorsAs[E error](err error, target *E) bool { return errors.As(err, target) }

func TestBatchIsStoredWithItsPosition(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		records := events(0, 3)
		records[1].Value = []byte("no event")
		records[2].Offset = 5 // the log has holes
		stored, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 9, LeaderEpoch: 7, Records: records})
		require.NoError(b, err)
		require.Equal(b, sink.Stored{Rows: 2, Quarantined: 1}, stored)
		b.holds(2, 1, 9)

		again, err := b.sink.Claim(b.Context(), lane, "g", "another")
		require.NoError(b, err)
		require.Equal(b, sink.Claim{LaneID: c.LaneID, Epoch: c.Epoch + 1, Next: 9, LeaderEpoch: 7}, again)
	})
}

func TestPositionMovesOverControlRecords(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		_, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 4})
		require.NoError(b, err)
		b.holds(0, 0, 4)
	})
}

// TestRowHoldsTheEvent reads every column back.
func TestRowHoldsTheEvent(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		at := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
		full := fmt.Sprintf(`{"timestamp":"%s.123456789Z","ttl":"30d","principalId":"患者👩‍⚕️","organizationId":"o","action":"a\"b\\","targetResourceType":"T",
			"targetResourceId":"I","status":"failure","outcomeDescription":"<x> \u2028","eventVersion":"2.0","correlationId":"c","dataClassification":"phi",
			"retentionPolicy":90,"processingLatency":12.9,"archivedAt":"2026-01-02T03:04:05+01:00","n":9007199254740993,"details":{"x":[1,null]}}`, at.Format("2006-01-02T15:04:05"))
		bare := fmt.Sprintf(`{"timestamp":"%s.000Z","action":"a","status":"attempt"}`, at.Format("2006-01-02T15:04:05"))
		_, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 2, Records: []event.Record{
			{Offset: 0, Timestamp: time.Now().Add(-time.Minute).UnixMilli(), Value: []byte(full)},
			{Offset: 1, Timestamp: -1, Value: []byte(bare)},
		}})
		require.NoError(b, err)
		rows, err := b.pool.Query(b.Context(), `SELECT to_jsonb(l) - 'id' - 'recorded_at' - 'hash' - 'lane_id' - 'timestamp' FROM audit_log l ORDER BY lane_offset`)
		require.NoError(b, err)
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(b, err)
		require.Len(b, got, 2)
		var first map[string]any
		require.NoError(b, json.Unmarshal([]byte(got[0]), &first))
		require.InDelta(b, 60_012, first["processing_latency"], 30_000)
		delete(first, "processing_latency")
		rest, err := json.Marshal(first)
		require.NoError(b, err)
		require.JSONEq(b, fmt.Sprintf(`{"timestamp_text":"%s.123456789Z","ttl":"30d","principal_id":"患者👩‍⚕️","organization_id":"o","action":"a\"b\\",
			"target_resource_type":"T","target_resource_id":"I","status":"failure","outcome_description":"<x> \u2028","hash_algorithm":"SHA-256","event_version":"2.0",
			"correlation_id":"c","data_classification":"PHI","retention_policy":"90","archived_at":"2026-01-02T02:04:05+00:00","details":{"n":9007199254740993,"details":{"x":[1,null]}},
			"lane_offset":0}`, at.Format("2006-01-02T15:04:05")), string(rest))
		require.Contains(b, got[0], `9007199254740993`)
		require.JSONEq(b, `{"timestamp_text":null,"ttl":null,"principal_id":null,"organization_id":null,"action":"a","target_resource_type":null,"target_resource_id":null,
			"status":"attempt","outcome_description":null,"hash_algorithm":"SHA-256","event_version":"1.0","correlation_id":null,"data_classification":"INTERNAL",
			"retention_policy":"standard","processing_latency":0,"archived_at":null,"details":null,"lane_offset":1}`, got[1])
		require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_log WHERE timestamp = $1::timestamptz + CASE lane_offset WHEN 0 THEN interval '123456 microseconds' ELSE '0' END`, at))
	})
}

func TestQuarantineKeepsTheRecord(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		_, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 4, Records: []event.Record{
			{Offset: 0, Timestamp: 1_700_000_000_123, Key: []byte("k\x00\xff"), Value: []byte("\xff{"), Headers: []event.Header{
				{Key: "h", Value: []byte("v")}, {Key: "h", Value: nil}, {Key: "\xff", Value: []byte{0}},
			}},
			{Offset: 1, Timestamp: -1},
			{Offset: 2, Timestamp: 9_300_000_000_000_000},
			{Offset: 3, Timestamp: 1_790_000_000_000_000_000},
		}})
		require.NoError(b, err)
		require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_quarantine WHERE lane_offset IN (2, 3) AND record_timestamp IS NULL AND detail LIKE '%000000000 ms%'`),
			"a timestamp that no column holds is told in words")
		var got [2]string
		for i := range got {
			require.NoError(b, b.pool.QueryRow(b.Context(), `SELECT to_jsonb(q) - 'id' - 'recorded_at' - 'detail' FROM audit_quarantine q WHERE lane_offset = $1`, i).Scan(&got[i]))
		}
		require.JSONEq(b, fmt.Sprintf(`{"lane_id":%d,"lane_offset":0,"record_timestamp":"2023-11-14T22:13:20.123+00:00","key":"\\x6b00ff","value":"\\xff7b",
			"headers":[["h","dg=="],["h",null],[null,"AA==","/w=="]],"reason":"invalid_json","state":"new"}`, c.LaneID), got[0])
		require.JSONEq(b, fmt.Sprintf(`{"lane_id":%d,"lane_offset":1,"record_timestamp":null,"key":null,"value":null,"headers":null,"reason":"empty","state":"new"}`, c.LaneID), got[1])
	})
}

func TestLateClaimFencesTheEarlier(t *testing.T) {
	onBoth(t, func(b *bed) {
		old := b.claim()
		current := b.claim()
		_, err := b.sink.Append(b.Context(), batch(old, 10))
		var fenced *sink.FencedError
		require.ErrorAs(b, err, &fenced)
		require.Equal(b, current.Epoch, fenced.Epoch)
		b.holds(0, 0, 0)
		_, err = b.sink.Append(b.Context(), batch(current, 10))
		require.NoError(b, err)
		b.holds(10, 0, 10)
	})
}

func TestPositionSetBackOrForward(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		_, err := b.sink.Append(b.Context(), batch(c, 10))
		require.NoError(b, err)
		c.Next = 10
		for _, elsewhere := range []int64{4, 15} {
			_, err = b.pool.Exec(b.Context(), `UPDATE audit_lane SET next_offset = $1`, elsewhere)
			require.NoError(b, err)
			_, err = b.sink.Append(b.Context(), batch(c, 10))
			var moved *sink.MovedError
			require.ErrorAs(b, err, &moved)
			require.Equal(b, elsewhere, moved.Next)
			b.holds(10, 0, elsewhere)
		}
	})
}

func TestSameBatchTwiceIsStoredOnce(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		for range 2 {
			stored, err := b.sink.Append(b.Context(), batch(c, 10))
			require.NoError(b, err)
			require.Equal(b, sink.Stored{Rows: 10}, stored)
			b.holds(10, 0, 10)
		}
	})
}

func TestLateEventsGetTheirTablePartitions(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		records := events(0, 2)
		now := time.Now().UTC()
		for months := 3; months < 9; months++ { // each in a month of its own, found missing at once
			records = append(records, event.Record{
				Offset: int64(len(records)), Timestamp: now.UnixMilli(),
				Value: fmt.Appendf(nil, `{"timestamp":%q,"action":"late","status":"success"}`, time.Date(now.Year(), now.Month()-time.Month(months), 15, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)),
			})
		}
		// As old as its record: within the rules, yet its month would be expired at once.
		records = append(records, event.Record{
			Offset: int64(len(records)), Timestamp: now.AddDate(-20, 0, 0).UnixMilli(),
			Value: fmt.Appendf(nil, `{"timestamp":%q,"action":"ancient","status":"success"}`, now.AddDate(-20, 0, -1).Format(time.RFC3339)),
		})
		stored, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: 9, Records: records})
		require.NoError(b, err)
		require.Equal(b, sink.Stored{Rows: 8, Quarantined: 1}, stored)
		b.holds(8, 1, 9)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_quarantine WHERE reason = 'rejected_by_database'`))
		require.EqualValues(b, 1, b.ensured.Load(), "all months are asked for at once")
	})
}

// TestBackendsTerminated ends the sessions of a busy sink at odd moments.
func TestBackendsTerminated(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		admin := b.open(b.url + "&application_name=admin")
		killed := make(chan error, 1)
		go func() {
			for i := range 12 {
				time.Sleep(time.Duration(17*(i%5)+11) * time.Millisecond) // odd moments are the point
				if _, err := admin.Exec(b.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND application_name = 'auditsink'`); err != nil {
					killed <- err
					return
				}
			}
			killed <- nil
		}()
		batches := int64(0)
		for running := true; running || batches < 10; batches++ {
			stored, err := b.sink.Append(b.Context(), batch(c, 400))
			require.NoError(b, err)
			require.EqualValues(b, 400, stored.Rows)
			c.Next += 400
			select {
			case err := <-killed:
				require.NoError(b, err)
				running = false
			default:
			}
		}
		b.pool.Reset()
		b.holds(batches*400, 0, batches*400)
	})
}

func TestDroppedRowsHaltTheLane(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		_, err := b.pool.Exec(b.Context(), `CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			CREATE TRIGGER swallow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION swallow()`)
		require.NoError(b, err)
		_, err = b.sink.Append(b.Context(), batch(c, 10))
		var halt *sink.HaltError
		require.ErrorAs(b, err, &halt)
		require.ErrorContains(b, err, "trigger")
		b.holds(0, 0, 0)
	})
}

func TestRefusedByTheSchema(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		_, err := b.pool.Exec(b.Context(), `ALTER TABLE audit_log DROP COLUMN ttl`)
		require.NoError(b, err)
		_, err = b.sink.Append(b.Context(), batch(c, 10))
		var fatal *sink.FatalError
		require.ErrorAs(b, err, &fatal)
		require.ErrorContains(b, err, "auditsink migrate up")
		b.holds(0, 0, 0)
	})
}

func TestContextEndsTheAttempts(t *testing.T) {
	onBoth(t, func(b *bed) {
		c := b.claim()
		lock, err := b.pool.Begin(b.Context())
		require.NoError(b, err)
		_, err = lock.Exec(b.Context(), `LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`)
		require.NoError(b, err)
		ctx, cancel := context.WithTimeout(b.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = b.sink.Append(ctx, batch(c, 10))
		require.ErrorIs(b, err, context.DeadlineExceeded)
		require.NoError(b, lock.Rollback(b.Context()))
		_, err = b.sink.Append(b.Context(), batch(c, 10))
		require.NoError(b, err)
		b.holds(10, 0, 10)
	})
}
