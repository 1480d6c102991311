package sink_test

import (
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/event"
	"auditsink/metrics"
	"auditsink/sink"
)

// What a record of a mixed batch is. An action of the form raise.CODE or later.CODE is met by the triggers of refusing, at once and at COMMIT.
const (
	good   = "good"
	junk   = "" // no event at all: Take refuses it
	poison = "poison"
	twin   = "twin" // excludes others of its kind by a unique index
)

// refusing is what a DBA may have added to audit_log.
const refusing = `
	ALTER TABLE audit_log ADD CONSTRAINT no_poison CHECK (action <> 'poison');
	CREATE UNIQUE INDEX no_twins ON audit_log (correlation_id, timestamp);
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.action LIKE TG_NAME || '.%' THEN
			RAISE EXCEPTION 'nobody may read of %', NEW.principal_id USING ERRCODE = split_part(NEW.action, '.', 2), DETAIL = NEW.principal_id;
		END IF;
		RETURN NEW;
	END $$;
	CREATE TRIGGER raise BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse();
	CREATE CONSTRAINT TRIGGER later AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`

// secret is content that must stay in the record.
const secret = "Jane Doe"

// mixed makes a batch of such records.
func mixed(c sink.Claim, kinds ...string) *sink.Batch {
	now := time.Now()
	b := &sink.Batch{Claim: c, To: c.Next + int64(len(kinds)), LeaderEpoch: 7}
	for i, kind := range kinds {
		value := fmt.Appendf(nil, `{"timestamp":%q,"action":%q,"status":"success","principalId":%q}`, now.UTC().Format(time.RFC3339), kind, secret)
		switch kind {
		case junk:
			value = []byte("no event")
		case twin:
			value = fmt.Appendf(nil, `{"timestamp":%q,"action":"twin","status":"success","correlationId":"twins of %d"}`, now.UTC().Format(time.RFC3339), c.Next)
		}
		b.Records = append(b.Records, event.Record{Offset: c.Next + int64(i), Timestamp: now.UnixMilli(), Value: value})
	}
	return b
}

// with repeats good records n times, but for some places.
func with(n int, kind string, places ...int) []string {
	kinds := slices.Repeat([]string{good}, n)
	for _, i := range places {
		kinds[i] = kind
	}
	return kinds
}

func (b *bed) quietSink() *sink.Sink {
	return b.newSinkWith(b.pool, metrics.New("test", event.Reasons()), zap.NewNop())
}

func (b *bed) exec(sql string, args ...any) {
	b.Helper()
	_, err := b.pool.Exec(b.Context(), sql, args...)
	require.NoError(b, err)
}

// strings reads one column.
func (b *bed) strings(query string, args ...any) []string {
	rows, err := b.pool.Query(b.Context(), query, args...)
	require.NoError(b, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(b, err)
	return all
}

// sorted requires a batch to be stored, its records in the order of the lane by id: rows, but for those kinds that the database refuses or
// that are no events.
func (b *bed) sorted(t require.TestingT, batch *sink.Batch, kinds []string) {
	rows, aside := []string{}, []string{}
	twins := 0
	for i, kind := range kinds {
		offset := batch.Claim.Next + int64(i)
		if kind == twin {
			twins++
		}
		switch {
		case kind == junk:
			aside = append(aside, fmt.Sprint(offset, " invalid_json"))
		case kind == good, kind == twin && twins == 1:
			rows = append(rows, fmt.Sprint(offset))
		default:
			aside = append(aside, fmt.Sprint(offset, " rejected_by_database"))
		}
	}
	require.Equal(t, rows, b.strings(`SELECT lane_offset::text FROM audit_log WHERE lane_offset >= $1 ORDER BY id`, batch.Claim.Next))
	require.Equal(t, aside, b.strings(`SELECT lane_offset || ' ' || reason FROM audit_quarantine WHERE lane_offset >= $1 ORDER BY id`, batch.Claim.Next))
	require.Equal(t, batch.To, b.number(`SELECT next_offset FROM audit_lane`))
}

// TestOnlyTheOffendingRecordsGoAside puts what the database refuses, in every way it can, at every place.
func TestOnlyTheOffendingRecordsGoAside(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		c := b.claim()
		store := func(kinds ...string) {
			b.Helper()
			s := b.quietSink() // without a memory of the others
			batch := mixed(c, kinds...)
			stored, err := s.Append(b.Context(), batch)
			require.NoError(b, err)
			b.sorted(b, batch, kinds)
			require.EqualValues(b, len(kinds), stored.Rows+stored.Quarantined)
			require.Equal(b, stored.Quarantined, b.number(`SELECT count(*) FROM audit_quarantine WHERE lane_offset >= $1`, c.Next))
			c.Next = batch.To
		}
		for _, kind := range []string{poison, "raise.23514", "raise.22023", "raise.23000", "later.23503", "later.22012"} {
			for i := range 6 {
				store(with(6, kind, i)...)
			}
			store(kind)
			store(with(7, kind, 2, 3)...)
			store(with(7, kind, 3, 4)...)
			store(with(7, kind, 0, 6)...)
			store(slices.Repeat([]string{kind}, 10)...)
		}
		store(twin, good, twin)
		store(twin, twin)
		store(good, twin, junk, twin, twin, good)
		store(junk, poison, good, "later.23000", junk, good, "raise.22000", twin, twin, poison)
		store(junk, poison, junk)
	})
}

// TestRefusalIsTold: the detail names what refused the row, and neither it nor the log what the row holds.
func TestRefusalIsTold(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(`ALTER TABLE audit_log ALTER COLUMN action TYPE varchar(20)`)
		core, logs := observer.New(zap.DebugLevel)
		m := metrics.New("test", event.Reasons())
		s := b.newSinkWith(b.pool, m, zap.New(core))
		kinds := []string{good, poison, "raise.23514", junk, twin, twin, "longer than twenty characters", "later.23503", poison}
		c := b.claim()
		_, err := s.Append(b.Context(), mixed(c, kinds...))
		require.NoError(b, err)
		details := b.strings(`SELECT detail FROM audit_quarantine WHERE reason = 'rejected_by_database' ORDER BY id`)
		for i, want := range []string{
			"SQLSTATE 23514, constraint no_poison:", "SQLSTATE 23514:", "SQLSTATE 23505, constraint ", "SQLSTATE 22001, column action:", "SQLSTATE 23503:",
			"SQLSTATE 23514, constraint no_poison:",
		} {
			require.Contains(b, details[i], want)
			require.NotContains(b, details[i], secret)
			require.Contains(b, details[i], "redrive")
		}
		require.Len(b, details, 6)
		require.Len(b, logs.FilterField(zap.String("mostly", "SQLSTATE 23514, constraint no_poison")).FilterField(zap.Int("refused", 6)).All(), 1)
		for _, entry := range logs.All() {
			require.NotContains(b, fmt.Sprint(entry.Message, entry.ContextMap()), secret)
		}
		require.EqualValues(b, 2, testutil.ToFloat64(m.FlushRetries.WithLabelValues("row")), "the COPY of all, and COMMIT")
		require.EqualValues(b, 6, testutil.ToFloat64(m.Quarantined.WithLabelValues("rejected_by_database")))
		require.EqualValues(b, 1, testutil.ToFloat64(m.Quarantined.WithLabelValues("invalid_json")))
		require.EqualValues(b, 2, testutil.ToFloat64(m.RowsInserted))
	})
}

// TestLateMonthsAmongPoison: a table partition that is missing in the middle of the search is made, and the search goes on.
func TestLateMonthsAmongPoison(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		kinds := []string{poison, good, good, junk, good, poison, good, good, good, poison}
		batch := mixed(b.claim(), kinds...)
		now := time.Now().UTC()
		late := func(i int, at time.Time) {
			batch.Records[i].Timestamp = min(now.UnixMilli(), at.AddDate(0, 0, 1).UnixMilli())
			batch.Records[i].Value = fmt.Appendf(nil, `{"timestamp":%q,"action":"late","status":"success"}`, at.Format(time.RFC3339))
		}
		late(2, time.Date(now.Year(), now.Month()-3, 15, 0, 0, 0, 0, time.UTC))
		late(7, time.Date(now.Year(), now.Month()-4, 15, 0, 0, 0, 0, time.UTC))
		late(8, now.AddDate(-20, 0, 0)) // no table partition is made for it
		kinds[8] = poison
		_, err := b.sink.Append(b.Context(), batch)
		require.NoError(b, err)
		b.sorted(b, batch, kinds)
		require.EqualValues(b, 1, b.ensured.Load())
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_quarantine WHERE lane_offset = 8 AND detail LIKE 'timestamp:%'`))
	})
}

// TestDeferredConstraintOverTheBatch: one that holds for the batch is not asked of its parts, as long as COMMIT doesn't refuse.
func TestDeferredConstraintOverTheBatch(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(`CREATE FUNCTION paired() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN
				IF NOT EXISTS (SELECT FROM audit_log WHERE lane_offset = NEW.lane_offset + 6) THEN RAISE foreign_key_violation; END IF;
				RETURN NULL;
			END $$;
			CREATE CONSTRAINT TRIGGER paired AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
			WHEN (NEW.lane_offset = 0) EXECUTE FUNCTION paired()`)
		kinds := with(8, poison, 4)
		batch := mixed(b.claim(), kinds...)
		_, err := b.sink.Append(b.Context(), batch)
		require.NoError(b, err)
		b.sorted(b, batch, kinds)
	})
}

// TestRefusedElsewhere: what refuses the quarantine, the position or COMMIT itself is no record's fault.
func TestRefusedElsewhere(t *testing.T) {
	for name, sql := range map[string]string{
		"quarantine": `CREATE TRIGGER raise BEFORE INSERT ON audit_quarantine FOR EACH ROW EXECUTE FUNCTION refuse_all()`,
		"position":   `CREATE TRIGGER raise BEFORE UPDATE OF next_offset ON audit_lane FOR EACH ROW EXECUTE FUNCTION refuse_all()`,
		"position at COMMIT": `CREATE CONSTRAINT TRIGGER raise AFTER UPDATE OF next_offset ON audit_lane DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION refuse_all()`,
		"COMMIT always": `CREATE CONSTRAINT TRIGGER raise AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_all();
			CREATE FUNCTION defer() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN NULL; END';
			CREATE TRIGGER defer BEFORE INSERT ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION defer()`,
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(b *bed) {
				b.exec(`CREATE FUNCTION refuse_all() RETURNS trigger LANGUAGE plpgsql AS $$
					BEGIN RAISE EXCEPTION 'Jane Doe' USING ERRCODE = 'check_violation'; END $$`)
				b.exec(sql)
				_, err := b.sink.Append(b.Context(), mixed(b.claim(), good, good, junk, good))
				var halt *sink.HaltError
				require.ErrorAs(b, err, &halt)
				require.ErrorContains(b, err, "SQLSTATE 23514")
				require.ErrorContains(b, err, "auditsink lanes accept")
				require.NotContains(b, err.Error(), secret)
				b.holds(0, 0, 0)
			})
		})
	}
}

// TestRefusedForBeingStored: where a DBA made the offset unique, a repeated batch is refused row by row, and is neither bisected nor braked.
func TestRefusedForBeingStored(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(`CREATE UNIQUE INDEX once ON audit_log (lane_id, lane_offset, timestamp)`)
		b.exec(counting)
		old := b.claim()
		repeated := batch(old, 200)
		for range 2 {
			_, err := b.sink.Append(b.Context(), repeated)
			require.NoError(b, err)
			require.EqualValues(b, 1, b.copies())
			b.holds(200, 0, 200)
		}
		current := b.claim()
		_, err := b.sink.Append(b.Context(), repeated)
		var fenced *sink.FencedError
		require.ErrorAs(b, err, &fenced)
		require.Equal(b, current.Epoch, fenced.Epoch)
		require.EqualValues(b, 1, b.copies())
		b.holds(200, 0, 200)
	})
}

// TestSystemicRefusalHaltsTheLane: over a tenth of a batch and over 100 records within a minute.
func TestSystemicRefusalHaltsTheLane(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(refusing)
		b.exec(counting)
		c := b.claim()
		pass := func(kinds []string) {
			b.Helper()
			batch := mixed(c, kinds...)
			_, err := b.sink.Append(b.Context(), batch)
			require.NoError(b, err)
			b.sorted(b, batch, kinds)
			c.Next = batch.To
		}
		halts := func(kinds []string, want string) {
			b.Helper()
			_, err := b.sink.Append(b.Context(), mixed(c, kinds...))
			var halt *sink.HaltError
			require.ErrorAs(b, err, &halt)
			require.ErrorContains(b, err, want)
			require.ErrorContains(b, err, "systemic")
			require.ErrorContains(b, err, "auditsink lanes accept")
			require.Zero(b, b.number(`SELECT count(*) FROM audit_log WHERE lane_offset >= $1`, c.Next))
			require.Zero(b, b.number(`SELECT count(*) FROM audit_quarantine WHERE lane_offset >= $1`, c.Next))
			require.Equal(b, c.Next, b.number(`SELECT next_offset FROM audit_lane`))
		}
		many := with(5000, poison)
		for i := range 200 {
			many[25*i] = poison
		}
		pass(many) // not a tenth
		pass(with(300, junk))

		b.sink = b.newSink(b.pool)
		sixty := with(100, poison)
		for i := range 60 {
			sixty[i] = poison
		}
		junks := slices.Repeat([]string{junk}, 200)
		pass(slices.Concat(sixty, junks)) // what Take refuses doesn't count
		pass(with(400, poison, 7))        // over 100 in a minute don't halt by themselves
		for range 2 {                     // the cause is still there
			halts(sixty, "refused 40 of the first 40 records of a batch of 100, from offset 6000 on, and 101 of this lane within a minute, "+
				"mostly with SQLSTATE 23514, constraint no_poison:")
		}
		b.exec(`ALTER TABLE audit_log DROP CONSTRAINT no_poison`)
		_, err := b.sink.Append(b.Context(), mixed(c, sixty...))
		require.NoError(b, err, "once the cause is mended")
		require.Equal(b, c.Next+100, b.number(`SELECT next_offset FROM audit_lane`))
		c.Next += 100

		b.copies()
		halts(slices.Repeat([]string{"raise.22000"}, 5000), "refused 501 of the first 501 records of a batch of 5000")
		require.LessOrEqual(b, b.copies(), int64(2*501+2*bits.Len(5000)), "as soon as both measures are exceeded")
	})
}
