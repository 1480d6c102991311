package query_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/query"
	"auditsink/metrics"
)

// reader is one with the bed's pool.
func (b *bed) reader(change ...func(*query.Options)) *query.Reader {
	o := query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: time.Minute, RetryAttempts: 3, RetryDelay: time.Millisecond}
	for _, c := range change {
		c(&o)
	}
	return query.New(b.pool, o)
}

// thisDay is a range that holds what stamp gives.
func thisDay() query.Filter {
	return query.Filter{From: time.Now().Add(-24 * time.Hour), To: time.Now().Add(time.Hour)}
}

// TestReadStored: what the sink stored comes back as it was sent.
func TestReadStored(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			now := stamp(seconds)
			b := newBed(t, version, full(now+".123456789+00:00"), `{"timestamp":"`+now+`.000Z","action":"a","status":"attempt","more":{"x":[1.50]}}`)
			r := b.reader()
			f := thisDay()
			f.Ascending = true
			page, err := r.Events(t.Context(), query.Everything(), f, 10, "")
			require.NoError(t, err)
			require.Len(t, page.Events, 2)
			require.Empty(t, page.Next)
			bare, e := page.Events[0], page.Events[1]
			require.Regexp(t, `\.123456789\+00:00$`, e.Timestamp)
			require.Equal(t, "o\"1", *e.OrganizationID)
			require.Equal(t, "fine\n<ok> 🩺", *e.OutcomeDescription)
			require.Len(t, *e.Hash, 64)
			require.Nil(t, e.Details)
			require.Regexp(t, `\.000Z$`, bare.Timestamp)
			require.JSONEq(t, `{"more":{"x":[1.50]}}`, string(bare.Details))
			require.Nil(t, bare.PrincipalID)

			at, err := time.Parse(time.RFC3339Nano, e.Timestamp)
			require.NoError(t, err)
			for _, at := range []time.Time{{}, at} {
				one, err := r.Event(t.Context(), query.Everything(), e.ID, at)
				require.NoError(t, err)
				require.Equal(t, e, one)
				_, err = r.Event(t.Context(), query.Organizations("other"), e.ID, at)
				require.ErrorIs(t, err, query.ErrNotFound)
			}
			_, err = r.Event(t.Context(), query.Everything(), e.ID, at.Add(time.Second))
			require.ErrorIs(t, err, query.ErrNotFound)
			count, err := r.Count(t.Context(), query.Everything(), f, 1)
			require.NoError(t, err)
			require.Equal(t, query.Count{Count: 1}, count)
			count, err = r.Count(t.Context(), query.Everything(), f, 2)
			require.NoError(t, err)
			require.Equal(t, query.Count{Count: 2, Exact: true}, count)

			page, err = r.Events(t.Context(), query.Everything(), f, 1, "")
			require.NoError(t, err)
			require.Equal(t, []query.Event{bare}, page.Events)
			page, err = r.Events(t.Context(), query.Everything(), f, 1, page.Next)
			require.NoError(t, err)
			require.Equal(t, query.Page{Events: []query.Event{e}}, page)

			var exported []query.Event
			require.NoError(t, r.Export(t.Context(), query.Everything(), f, func(e query.Event) error { exported = append(exported, e); return nil }))
			require.Equal(t, []query.Event{bare, e}, exported)
			enough := errors.New("enough")
			require.ErrorIs(t, r.Export(t.Context(), query.Everything(), f, func(query.Event) error { return enough }), enough)
		})
	}
}
