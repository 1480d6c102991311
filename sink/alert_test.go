package sink_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/event"
	"auditsink/metrics"
	"auditsink/sink"
)

// TestFlushFailingAlert: the alert is raised by batches that can't be stored, and not by those that are stored once late events have their partitions, or
// once the records to blame are found.
func TestFlushFailingAlert(t *testing.T) {
	onBoth(t, func(b *bed) {
		b.exec(`ALTER TABLE audit_log ADD CONSTRAINT no_poison CHECK (action <> 'poison')`)
		m := metrics.New("test", event.Reasons())
		alerts := metrics.NewAlerts(m, slices.DeleteFunc(metrics.Rules(), func(r metrics.Rule) bool { return r.Name != metrics.AlertFlushFailing }))
		now := time.Now()
		judge := func() (told []bool) {
			now = now.Add(15 * time.Second)
			s, err := m.Sample(now)
			require.NoError(b, err)
			for _, n := range alerts.Judge(s) {
				told = append(told, n.Firing)
			}
			return told
		}
		away := 0 // how often no partition can be made
		s := sink.New(b.pool, 4, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, func(ctx context.Context, days []time.Time) ([]time.Time, error) {
			if away > 0 {
				away--
				return nil, &pgconn.PgError{Code: "55P03", Message: "canceling statement due to lock timeout"}
			}
			return b.ensure(ctx, days)
		}, m, zaptest.NewLogger(b))
		require.Empty(b, judge())
		c := b.claim()
		store := func(action string, at time.Time) {
			_, err := s.Append(b.Context(), &sink.Batch{Claim: c, To: c.Next + 1, Records: []event.Record{{
				Offset: c.Next, Timestamp: time.Now().UnixMilli(),
				Value: fmt.Appendf(nil, `{"timestamp":%q,"action":%q,"status":"success"}`, at.UTC().Format(time.RFC3339), action),
			}}})
			require.NoError(b, err)
			c.Next++
		}
		month := time.Date(now.Year(), now.Month(), 15, 0, 0, 0, 0, time.UTC)
		for i := range 6 {
			store("poison", now)
			store("late", month.AddDate(0, -3-i, 0))
		}
		require.Empty(b, judge(), "all of them are stored, or in quarantine")
		away = 4
		store("late", month.AddDate(0, -10, 0))
		require.Equal(b, []bool{true}, judge())
		b.holds(7, 6, 13)
	})
}
