package sink_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/event"
	"auditsink/internal/testkit"
	"auditsink/sink"
)

// operator makes changes of all new records, each with a name of its own.
func (b *bed) operator(name string) sink.Change {
	return sink.Change{Client: name, Reason: "because " + name, Attempts: 1000, Delay: time.Millisecond}
}

// strict is a sink that quarantines whatever has bytes.
func (b *bed) strict() *sink.Sink {
	return b.newSinkOf(b.pool, event.Rules{MaxBytes: 1, Horizon: horizon})
}

// quarantine puts records into quarantine, where rules mended since would make rows of them, and returns the claim behind them.
func (b *bed) quarantine(c sink.Claim, records []event.Record) sink.Claim {
	b.Helper()
	to := c.Next + int64(len(records))
	stored, err := b.strict().Append(b.Context(), &sink.Batch{Claim: c, To: to, Records: records})
	require.NoError(b, err)
	require.Equal(b, sink.Stored{Quarantined: int64(len(records))}, stored)
	c.Next = to
	return c
}

// redriven requires so many rows and as many records marked for them, each with one note.
func (b *bed) redriven(rows int64) {
	b.Helper()
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_log`), "rows")
	require.Equal(b, rows, b.number(`SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`), "distinct rows")
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_quarantine q JOIN audit_log l USING (lane_id, lane_offset) WHERE q.state = 'redriven'`), "marked for a row")
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'redriven'`), "marked")
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'redriven'`), "notes")
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_lane_event e JOIN audit_quarantine q ON q.id = e.quarantine_id AND q.lane_id = e.lane_id
		AND q.lane_offset = e.from_offset AND q.lane_offset + 1 = e.to_offset`), "notes of their records")
}

// corpus is the records that the rules are tried with, in order, and one that fills every column.
func corpus(t *testing.T) []event.Record {
	text, err := os.ReadFile("../internal/event/testdata/events.json")
	require.NoError(t, err)
	var cases []struct{ Value []byte }
	require.NoError(t, json.Unmarshal(text, &cases))
	require.Len(t, cases, 52)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	var records []event.Record
	for i, c := range cases {
		records = append(records, event.Record{Offset: int64(i), Timestamp: at.UnixMilli(), Value: c.Value, Key: []byte{byte(i)}})
	}
	full := `{"timestamp":"2026-11-15T10:30:00.123456789Z","ttl":"30d","principalId":"患者👩‍⚕️","organizationId":"o","action":"a\"b\\","targetResourceType":"T",
		"targetResourceId":"I","status":"failure","outcomeDescription":"<x> \u2028","eventVersion":"2.0","correlationId":"c","dataClassification":"phi",
		"retentionPolicy":90,"processingLatency":12.9,"archivedAt":"2026-01-02T03:04:05+01:00","n":9007199254740993,"details":{"x":[1,null]}}`
	return append(records, event.Record{Offset: 52, Timestamp: at.UnixMilli(), Value: []byte(full)}, event.Record{Offset: 53, Timestamp: -1, Value: []byte(full)})
}

// TestRedriveStoresWhatTheWorkerWould takes the corpus the normal way into one database, and through quarantine into another: they are the same,
// rows and quarantine.
func TestRedriveStoresWhatTheWorkerWould(t *testing.T) {
	onBoth(t, func(b *bed) {
		var want, got []string
		for _, through := range []bool{false, true} {
			b := newBed(b.T, b.another())
			c, records := b.claim(), corpus(b.T)
			all, moved := int64(len(records)), int64(0)
			if through {
				b.quarantine(c, records)
				require.Equal(b, all, b.number(`SELECT count(*) FROM audit_quarantine WHERE reason IN ('too_large', 'empty')`))
				done, err := b.sink.Redrive(b.Context(), b.operator("op"))
				require.NoError(b, err)
				require.Zero(b, done.Elsewhere)
				moved = done.Moved
				b.redriven(moved)
				for reason, n := range done.Kept {
					require.Equal(b, n, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'new' AND reason = $1`, reason), reason)
				}
			} else {
				stored, err := b.sink.Append(b.Context(), &sink.Batch{Claim: c, To: all, Records: records})
				require.NoError(b, err)
				require.Positive(b, stored.Rows)
			}
			rows, err := b.pool.Query(b.Context(), `
				SELECT (to_jsonb(l) - 'id' - 'recorded_at' - 'processing_latency')::text FROM audit_log l
				UNION ALL SELECT (to_jsonb(q) - 'id' - 'recorded_at')::text FROM audit_quarantine q WHERE state = 'new' ORDER BY 1`)
			require.NoError(b, err)
			want = got
			got, err = pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(b, err)
			require.Len(b, got, int(all))
			// Without a timestamp of the record its own latency is all there is; else the time since then is added.
			require.EqualValues(b, 12, b.number(`SELECT processing_latency FROM audit_log WHERE lane_offset = 53`))
			require.Greater(b, b.number(`SELECT processing_latency FROM audit_log WHERE lane_offset = 52`), int64(12))
		}
		require.Equal(b, want, got)
	})
}

func TestRedriveTwoAtOnce(t *testing.T) {
	onBoth(t, func(b *bed) {
		const n = 1700
		c := b.claim()
		b.quarantine(c, events(0, n))
		var group errgroup.Group
		var both [2]sink.Changed
		for i := range both {
			s := b.newSink(b.open(b.url))
			group.Go(func() (err error) {
				both[i], err = s.Redrive(b.Context(), b.operator(fmt.Sprint("op", i)))
				return err
			})
		}
		require.NoError(b, group.Wait())
		b.redriven(n)
		require.EqualValues(b, n, both[0].Moved+both[1].Moved)
		for i, done := range both {
			require.Equal(b, done.Moved, b.number(`SELECT count(*) FROM audit_lane_event WHERE client = $1 AND reason = $2`, fmt.Sprint("op", i), fmt.Sprint("because op", i)))
		}
		again, err := b.sink.Redrive(b.Context(), b.operator("third"))
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Kept: map[string]int64{}}, again)
		b.redriven(n)
	})
}

// TestWaitsForAnother: what another session holds is not overlooked, and once it was moved on it isn't taken.
func TestWaitsForAnother(t *testing.T) {
	for state, other := range map[string]string{sink.StateRedriven: sink.StateDiscarded, sink.StateDiscarded: sink.StateRedriven} {
		onBoth(t, func(b *bed) {
			b.quarantine(b.claim(), events(0, 10))
			another, err := b.pool.Begin(b.Context())
			require.NoError(b, err)
			_, err = another.Exec(b.Context(), `UPDATE audit_quarantine SET state = $1 WHERE lane_offset IN (3, 4)`, other)
			require.NoError(b, err)
			result := make(chan sink.Changed, 1)
			go func() {
				var done sink.Changed
				var err error
				if state == sink.StateRedriven {
					done, err = b.sink.Redrive(b.Context(), b.operator("op"))
				} else {
					done, err = sink.Discard(b.Context(), b.pool, b.operator("op"))
				}
				if err != nil {
					b.Error(err)
				}
				result <- done
			}()
			require.Eventually(b, func() bool {
				return b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
			}, 30*time.Second, 5*time.Millisecond)
			require.NoError(b, another.Commit(b.Context()))
			require.Equal(b, sink.Changed{Moved: 8, Kept: map[string]int64{}, Elsewhere: 2}, <-result)
			require.EqualValues(b, 8, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = $1`, state))
			require.EqualValues(b, 2, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = $1`, other))
			require.EqualValues(b, 8, b.number(`SELECT count(*) FROM audit_lane_event`))
		})
	}
}

// TestRedriveBackendsTerminated ends the sessions of two busy redrives at odd moments.
func TestRedriveBackendsTerminated(t *testing.T) {
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
		var total int64
		for running, round := true, 0; running || round < 5; round++ {
			c = b.quarantine(c, events(c.Next, 700))
			var all sync.WaitGroup
			var both [2]sink.Changed
			var errs [2]error
			for i := range both {
				all.Go(func() { both[i], errs[i] = b.sink.Redrive(b.Context(), b.operator(fmt.Sprint("op", round, i))) })
			}
			all.Wait()
			require.NoError(b, errs[0])
			require.NoError(b, errs[1])
			require.EqualValues(b, 700, both[0].Moved+both[1].Moved, "each knows what it did")
			total += 700
			select {
			case err := <-killed:
				require.NoError(b, err)
				running = false
			default:
			}
		}
		b.pool.Reset()
		b.redriven(total)
	})
}

// TestRedriveUnansweredCommit loses a COMMIT on its way, and its answer on the way back, and each with a connection that stays open and
// silent: the records are redriven once in every case, and counted.
func TestRedriveUnansweredCommit(t *testing.T) {
	for _, cut := range []testkit.Cut{{}, {Forward: true}, {Freeze: true}, {Forward: true, Freeze: true}} {
		onBoth(t, func(b *bed) {
			k, url := b.cutter()
			if cut.Freeze {
				sink.SetAttemptTimeout(b.T, 500*time.Millisecond)
				defer k.Thaw()
			}
			through := b.newSink(b.open(url))
			records := events(0, 50)
			records[7].Value = []byte("[]")
			b.quarantine(b.claim(), records)
			k.Once(cut)
			done, err := through.Redrive(b.Context(), b.operator("op"))
			require.NoError(b, err)
			require.Equal(b, 1, k.Cuts(), "a COMMIT was cut")
			require.Equal(b, sink.Changed{Moved: 49, Kept: map[string]int64{"not_an_object": 1}}, done)
			b.redriven(49)
		})
	}
}

// TestRedriveSlowCommit gives up on a COMMIT that is under way: what it stores is not taken for somebody else's work.
func TestRedriveSlowCommit(t *testing.T) {
	onBoth(t, func(b *bed) {
		sink.SetAttemptTimeout(b.T, 500*time.Millisecond)
		b.quarantine(b.claim(), events(0, 50))
		// The client asks to cancel what it no longer waits for.
		_, err := b.pool.Exec(b.Context(), `
			CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN PERFORM pg_sleep(2); RETURN NULL; EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(1); RETURN NULL; END $$;
			CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON audit_lane_event DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.from_offset = 7) EXECUTE FUNCTION linger()`)
		require.NoError(b, err)
		done, err := b.sink.Redrive(b.Context(), b.operator("op"))
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Moved: 50, Kept: map[string]int64{}}, done)
		b.redriven(50)
	})
}

// TestDiscardUnansweredCommit is the same for what is discarded.
func TestDiscardUnansweredCommit(t *testing.T) {
	for _, cut := range []testkit.Cut{{}, {Forward: true}} {
		onBoth(t, func(b *bed) {
			k, url := b.cutter()
			through := b.open(url)
			b.quarantine(b.claim(), events(0, 50))
			k.Once(cut)
			done, err := sink.Discard(b.Context(), through, b.operator("op"))
			require.NoError(b, err)
			require.Equal(b, 1, k.Cuts(), "a COMMIT was cut")
			require.Equal(b, sink.Changed{Moved: 50, Kept: map[string]int64{}}, done)
			require.EqualValues(b, 50, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'discarded'`))
		})
	}
}

// TestRedriveRefusedByTheDatabase: what the database refuses stays, and holds up no other; once it takes them they move.
func TestRedriveRefusedByTheDatabase(t *testing.T) {
	for name, c := range map[string]struct{ forbid, allow, says string }{
		"check constraint": {
			`ALTER TABLE audit_log ADD CONSTRAINT no_threes CHECK (action !~ '3$')`, `ALTER TABLE audit_log DROP CONSTRAINT no_threes`,
			"SQLSTATE 23514, constraint no_threes",
		},
		"deferred constraint": {
			`CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.action ~ ''3$'' THEN RAISE unique_violation USING MESSAGE = NEW.action; END IF; RETURN NULL; END';
			CREATE CONSTRAINT TRIGGER forbid AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION forbid()`,
			`DROP TRIGGER forbid ON audit_log`,
			"SQLSTATE 23505",
		},
		"a value of wrong form": {
			`CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.action ~ ''3$'' THEN PERFORM NEW.action::int; END IF; RETURN NEW; END';
			CREATE TRIGGER forbid BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION forbid()`,
			`DROP TRIGGER forbid ON audit_log`,
			"SQLSTATE 22P02",
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(b *bed) {
				b.quarantine(b.claim(), events(0, 40))
				_, err := b.pool.Exec(b.Context(), c.forbid)
				require.NoError(b, err)
				for range 2 {
					_, err = b.sink.Redrive(b.Context(), b.operator("op"))
					require.NoError(b, err)
					b.redriven(36)
				}
				rows, err := b.pool.Query(b.Context(), `SELECT reason || ' ' || detail FROM audit_quarantine WHERE state = 'new' AND lane_offset IN (3, 13, 23, 33)`)
				require.NoError(b, err)
				kept, err := pgx.CollectRows(rows, pgx.RowTo[string])
				require.NoError(b, err)
				require.Len(b, kept, 4)
				for _, why := range kept {
					require.Equal(b, "rejected_by_database "+c.says+": the database refused the row; mend what refuses it, or the producer, and redrive the record", why)
				}
				_, err = b.pool.Exec(b.Context(), c.allow)
				require.NoError(b, err)
				done, err := b.sink.Redrive(b.Context(), b.operator("later"))
				require.NoError(b, err)
				require.Equal(b, sink.Changed{Moved: 4, Kept: map[string]int64{}}, done)
				b.redriven(40)
			})
		})
	}
}

// TestRedriveMakesTablePartitions: a month within the horizon gets its table partition, one beyond it stays in quarantine.
func TestRedriveMakesTablePartitions(t *testing.T) {
	onBoth(t, func(b *bed) {
		now := time.Now().UTC()
		late := func(recorded, at time.Time) event.Record {
			return event.Record{Timestamp: recorded.UnixMilli(), Value: fmt.Appendf(nil, `{"timestamp":%q,"action":"late","status":"success"}`, at.Format(time.RFC3339))}
		}
		records := append(events(0, 2),
			late(now, time.Date(now.Year(), now.Month()-3, 15, 0, 0, 0, 0, time.UTC)),
			late(now, time.Date(now.Year(), now.Month()-5, 15, 0, 0, 0, 0, time.UTC)),
			late(now.AddDate(-20, 0, 0), now.AddDate(-20, 0, -1)), // as old as its record: within the rules, but no month is made for it
			late(now, now.AddDate(-20, 0, -1)),
			late(now, now.AddDate(0, 0, 3)),
		)
		for i := range records {
			records[i].Offset = int64(i)
		}
		b.quarantine(b.claim(), records)
		done, err := b.sink.Redrive(b.Context(), b.operator("op"))
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Moved: 4, Kept: map[string]int64{"rejected_by_database": 1, "timestamp_out_of_range": 2}}, done)
		b.redriven(4)
		require.EqualValues(b, 1, b.ensured.Load(), "all months are asked for at once")
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'new' AND lane_offset = 4 AND reason = 'rejected_by_database' AND detail LIKE '%horizon%'`))
	})
}

// TestRedriveStopsForSchemaFaults: what isn't the fault of a record is an error, and changes nothing.
func TestRedriveStopsForSchemaFaults(t *testing.T) {
	for name, c := range map[string]struct{ sql, says string }{
		"rows that vanish": {`CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			CREATE TRIGGER swallow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION swallow()`, "find the trigger or rule that drops rows"},
		"marks that vanish": {`CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			CREATE TRIGGER swallow BEFORE UPDATE ON audit_quarantine FOR EACH ROW EXECUTE FUNCTION swallow()`, "find the trigger or rule on audit_quarantine"},
		"a missing column": {`ALTER TABLE audit_log DROP COLUMN ttl`, "42703"},
		"an odd refusal": {`CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
			CREATE TRIGGER swallow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION swallow()`, "P0001"},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(b *bed) {
				b.quarantine(b.claim(), events(0, 10))
				_, err := b.pool.Exec(b.Context(), c.sql)
				require.NoError(b, err)
				done, err := b.sink.Redrive(b.Context(), b.operator("op"))
				require.ErrorContains(b, err, c.says)
				require.Zero(b, done.Moved)
				b.redriven(0)
				require.EqualValues(b, 10, b.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'new' AND reason = 'too_large'`))
			})
		})
	}
}

// TestRedriveInBatches: no more than some hundreds of records, and not many more than some megabytes, are held at a time.
func TestRedriveInBatches(t *testing.T) {
	onBoth(t, func(b *bed) {
		const transactions = `SELECT count(DISTINCT xmin::text) FROM audit_lane_event`
		c := b.quarantine(b.claim(), events(0, 1100))
		done, err := b.sink.Redrive(b.Context(), b.operator("op"))
		require.NoError(b, err)
		require.EqualValues(b, 1100, done.Moved)
		require.EqualValues(b, 3, b.number(transactions))
		_, err = b.pool.Exec(b.Context(), `TRUNCATE audit_lane_event`)
		require.NoError(b, err)
		large := events(c.Next, 10)
		for i := range large {
			large[i].Value = append(large[i].Value[:len(large[i].Value)-1], `,"pad":"`+strings.Repeat("x", 1_000_000)+`"}`...)
		}
		b.quarantine(c, large)
		done, err = b.sink.Redrive(b.Context(), b.operator("op"))
		require.NoError(b, err)
		require.EqualValues(b, 10, done.Moved)
		require.EqualValues(b, 2, b.number(transactions))
	})
}

// TestRedriveLeavesSignaturesWithoutAKey: that a signature isn't checked is no proof of it.
func TestRedriveLeavesSignaturesWithoutAKey(t *testing.T) {
	onBoth(t, func(b *bed) {
		signed := b.newSinkOf(b.pool, event.Rules{MaxBytes: 1 << 20, Horizon: horizon, SignatureKey: []byte("wrong")})
		records := events(0, 2)
		records[1].Value = append(records[1].Value[:len(records[1].Value)-1], `,"signature":"00"}`...)
		_, err := signed.Append(b.Context(), &sink.Batch{Claim: b.claim(), To: 2, Records: records})
		require.NoError(b, err)
		before := b.number(`SELECT count(*) FROM audit_quarantine WHERE reason = 'signature_mismatch'`)
		require.EqualValues(b, 1, before)
		op := b.operator("op")
		done, err := b.sink.Redrive(b.Context(), op)
		require.NoError(b, err)
		require.Equal(b, sink.Changed{Kept: map[string]int64{"signature_mismatch": 1}}, done)
		op.Unsigned, op.Reason = true, ""
		done, err = b.sink.Redrive(b.Context(), op)
		require.NoError(b, err)
		require.EqualValues(b, 1, done.Moved)
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_lane_event WHERE reason = 'no longer signature_mismatch'`))
	})
}
