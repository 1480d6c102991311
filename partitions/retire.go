package partitions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/failpoint"
)

// move is the next step on a partition's way out, or back.
type move string

const (
	stay     move = ""
	verify   move = "verify"   // put on record what it holds
	detach   move = "detach"   // DETACH CONCURRENTLY
	finalize move = "finalize" // a detach that was interrupted
	settle   move = "settle"   // look again at what was detached, and put it on record
	reattach move = "reattach" // what is not to go after all
	drop     move = "drop"
	refuse   move = "refuse" // what has not been begun
	stayed   move = "stayed" // on record as detached, but somebody else attached it
	missing  move = "missing"
)

// next decides the next step, from what the catalog and the record say, and how the partition is judged.
func (w way) next(v verdict, enforce bool) (move, string) {
	enforce = enforce || w.removed
	due := v.Expired(v.now)
	if w.removed {
		due = len(v.policies) == 0 // then neither age nor holds matter
	}
	why := v.Why
	switch {
	case w.removed && due:
		why = "it is empty, and others shall be in its place"
	case w.removed:
		why = "it is no longer empty"
	}
	switch {
	case w.Detaching:
		return finalize, "a DETACH CONCURRENTLY was interrupted"
	case w.attached && w.open():
		switch {
		case w.state == "detached":
			return stayed, "somebody attached it again"
		case !due && (enforce || w.state == "verified"):
			return refuse, why
		case !due || !enforce:
			return stay, why
		case w.state == "requested":
			return verify, why
		default:
			return detach, why
		}
	case w.attached:
		if due && enforce {
			return verify, why
		}
		return stay, why
	case w.oid == 0:
		if w.state == "requested" {
			return refuse, "there is no such partition"
		}
		return missing, "somebody else dropped it"
	case w.state == "requested":
		return refuse, "it is no partition of audit_log any more"
	case !w.open():
		return reattach, "it was to stay, and a late DETACH came"
	case w.swapped():
		return stay, why
	case !due:
		return reattach, why
	case w.state == "verified":
		return settle, why
	case w.removed, enforce && !v.DropAfter.IsZero() && !v.DropAfter.After(v.now):
		return drop, why
	default:
		return stay, why
	}
}

// round is one round of a leader over the ways out.
type round struct {
	db        *pgxpool.Pool
	term      Term
	now       time.Time
	retention Retention
	untold    map[string]bool // the partitions that lack indexes to judge them by
	done      []Action
}

// Retire is one round over the partitions' ways out: it goes on with what is half done, answers requests and, where the retention is enforced, retires
// what is due. It returns what it did. What has to wait for a lock is left to the next round, and told as such; what fails keeps the others from nothing.
// It ends at once with [ErrDeposed] where the term is over.
func Retire(ctx context.Context, db *pgxpool.Pool, term Term, now time.Time, retention Retention) ([]Action, error) {
	r := &round{db: db, term: term, now: now, retention: retention}
	ways, err := look(ctx, db)
	if err != nil {
		return nil, err
	}
	if r.untold, err = untoldOf(ctx, db); err != nil {
		return nil, err
	}
	// While one detach is pending no other can begin.
	slices.SortStableFunc(ways, func(a, b way) int {
		switch {
		case a.Detaching == b.Detaching:
			return 0
		case a.Detaching:
			return -1
		default:
			return 1
		}
	})
	err = r.walk(ctx, ways)
	return r.done, err
}

func (r *round) walk(ctx context.Context, ways []way) error {
	var failed []error
	for _, w := range ways {
		err := r.goOn(ctx, w)
		switch {
		case r.over(ctx, err):
			return errors.Join(append(failed, err)...)
		case err != nil && waits(err):
			r.wait(w.Name, err)
		case err != nil:
			failed = append(failed, fmt.Errorf("retire partition %s: %w", w.Name, err))
		}
	}
	return errors.Join(failed...)
}

// over tells whether an error ends the round.
func (r *round) over(ctx context.Context, err error) bool {
	return err != nil && (errors.Is(err, ErrDeposed) || ctx.Err() != nil)
}

func (r *round) wait(name string, err error) {
	r.done = append(r.done, Action{Name: name, What: "waits", Why: err.Error()})
}

func (r *round) did(name, what string, rows int64, why string) {
	r.done = append(r.done, Action{Name: name, What: what, Rows: rows, Why: why})
}

// goOn takes as many steps with a partition as there are to take now. Each begins with a look: it may be that nothing is as it was.
func (r *round) goOn(ctx context.Context, w way) error {
	if w.attached && !w.Detaching && !w.open() && !r.mayGo(w) {
		return nil
	}
	if w.attached && !w.Detaching && (!w.open() || w.state == "requested") && r.untold[w.Name] {
		r.wait(w.Name, errUnbuilt)
		return nil
	}
	const most = 8 // more than any way has; two who undo what the other does must not hold up the round
	for range most {
		b, err := convene(ctx, r.db, r.now, r.retention)
		if err != nil {
			return err
		}
		v, err := b.judgeSoon(ctx, r.db, w)
		if err != nil {
			return err
		}
		step, why := w.next(v, r.retention.Enforce)
		switch step {
		case stay:
			if w.swapped() {
				r.wait(w.Name, errors.New(why))
			}
			return nil
		case finalize:
			err = r.finalize(ctx, w, why)
		case detach:
			var begun bool
			if begun, err = r.detach(ctx, w); !begun && err == nil {
				return nil
			}
		default:
			err = r.take(ctx, w, step)
		}
		if err != nil {
			return err
		}
		if w, err = lookAt(ctx, r.db, w.Name); err != nil {
			return err
		}
		if !w.attached && w.event == 0 || w.oid == 0 && !w.open() {
			return nil
		}
	}
	r.wait(w.Name, errors.New("somebody else changes it at the same time"))
	return nil
}

// mayGo tells whether a partition that nothing has begun with is worth a look.
func (r *round) mayGo(w way) bool {
	return r.retention.Enforce && !w.Default && !w.strange && !w.To.IsZero() && !w.To.AddDate(0, 0, r.retention.MinDays).After(r.now)
}

// take takes a step in a transaction, in which it looks and judges anew; where another step is due by then, it does nothing.
func (r *round) take(ctx context.Context, w way, step move) error {
	var action *Action
	err := transact(ctx, r.db, func(tx pgx.Tx) error {
		var c count
		var err error
		// What takes long comes before the locks that others wait for.
		if step == verify || step == settle || step == drop {
			var same bool
			if same, err = r.secure(ctx, tx, w, step); err != nil || !same {
				return err
			}
			if c, err = countRows(ctx, tx, w.table); err != nil {
				return err
			}
		}
		if err = alone(ctx, tx); err != nil {
			return err
		}
		if err = firm(ctx, tx); err != nil {
			return err
		}
		oid := w.oid
		if w, err = lookAt(ctx, tx, w.Name); err != nil {
			return err
		}
		v, err := judge(ctx, tx, w, r.now, r.retention)
		if err != nil {
			return err
		}
		due, why := w.next(v, r.retention.Enforce)
		if due != step || w.oid != oid {
			return nil
		}
		if err = c.agrees(w, v); err != nil {
			return err
		}
		if action, err = r.carryOut(ctx, tx, w, v, step, why, c); err != nil {
			return err
		}
		if err = r.term.confirm(ctx, tx); err != nil {
			return err
		}
		failpoint.Hit("retire." + string(step) + ".before-commit")
		return nil
	})
	if err != nil {
		return err
	}
	if action != nil {
		r.done = append(r.done, *action)
		failpoint.Hit("retire." + string(step) + ".after-commit")
	}
	return nil
}

// secure locks a table that is detached, so that what is counted is what goes, and nobody attaches it. It tells whether it still is as it was: one that was
// attached meanwhile would keep events waiting.
func (*round) secure(ctx context.Context, tx pgx.Tx, w way, step move) (bool, error) {
	mode := "SHARE"
	switch step {
	case verify:
		return true, nil
	case drop:
		mode = "ACCESS EXCLUSIVE"
	default:
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE `+w.table+` IN `+mode+` MODE`); err != nil {
		return false, err
	}
	now, err := lookAt(ctx, tx, w.Name)
	return now == w, err
}

// carryOut writes what a step changes.
func (r *round) carryOut(ctx context.Context, tx pgx.Tx, w way, v verdict, step move, why string, c count) (*Action, error) {
	base := map[string]any{"why": why}
	switch step {
	case verify:
		return &Action{w.Name, "verified", c.rows, why}, r.recordVerified(ctx, tx, w, c.rows, c.detail(map[string]any{
			"why": why, "policy": v.Policy, "days": v.Days, "due": v.Due, "grace": r.retention.Grace.String(),
		}))
	case settle:
		detail := c.detail(map[string]any{"why": why, "detached_at": v.now, "detached_oid": w.oid})
		if err := r.update(ctx, tx, w, "detached", c.rows, detail); err != nil {
			return nil, err
		}
		return &Action{w.Name, "detached", c.rows, why}, note(ctx, tx, "detach", w, &r.term.Number, c.rows, base)
	case drop:
		if err := r.update(ctx, tx, w, "done", c.rows, c.detail(map[string]any{"dropped_at": v.now, "counted_before": w.rows})); err != nil {
			return nil, err
		}
		_, err := tx.Exec(ctx, `DROP TABLE `+w.table)
		return &Action{w.Name, "dropped", c.rows, why}, err
	case reattach:
		return &Action{w.Name, "restored", 0, why}, attach(ctx, tx, w, &r.term.Number, why)
	case stayed:
		return &Action{w.Name, "restored", 0, why}, r.update(ctx, tx, w, "restored", w.rows, base)
	case missing:
		return &Action{w.Name, "dropped", 0, why}, r.update(ctx, tx, w, "done", w.rows, map[string]any{"why": why, "dropped_by_others": true})
	case refuse:
		if !v.Due.IsZero() {
			base["due"] = v.Due
		}
		return &Action{w.Name, "refused", 0, why}, r.update(ctx, tx, w, "refused", w.rows, base)
	default:
		return nil, fmt.Errorf("step %q is not one of a transaction", step)
	}
}

// recordVerified opens a way out, or goes on with the one that was asked for.
func (r *round) recordVerified(ctx context.Context, tx pgx.Tx, w way, rows int64, detail map[string]any) error {
	detail["oid"] = w.oid
	if w.open() {
		return r.update(ctx, tx, w, "verified", rows, detail)
	}
	text, err := asJSON(detail)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, row_count, detail, state, term)
		VALUES ($1, 'drop', $2, $3, $4, $5::text::jsonb, 'verified', $6)`, w.Name, orNull(w.From), orNull(w.To), rows, text, r.term.Number)
	return err
}

// update brings a way out up to date. What was said by who asked for it stays, under request.
func (r *round) update(ctx context.Context, tx pgx.Tx, w way, state string, rows int64, detail map[string]any) error {
	return setState(ctx, tx, w, &r.term.Number, state, &rows, detail)
}

func setState(ctx context.Context, tx pgx.Tx, w way, term *int64, state string, rows *int64, detail map[string]any) error {
	text, err := asJSON(detail)
	if err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, `
		UPDATE audit_partition_event SET state = $3, row_count = coalesce($4, row_count), term = coalesce($6, term), updated_at = clock_timestamp(),
			detail = coalesce(detail, '{}') || CASE state WHEN 'requested' THEN jsonb_build_object('request', detail) ELSE '{}' END || $5::text::jsonb
		WHERE id = $1 AND state = $2`, w.event, w.state, state, rows, text, term)
	if err == nil && tag.RowsAffected() != 1 {
		return fmt.Errorf("event %d of %s is no longer %s", w.event, w.Name, w.state)
	}
	return err
}

// note puts a step on record beside the way out that it belongs to.
func note(ctx context.Context, tx pgx.Tx, kind string, w way, term *int64, rows int64, detail map[string]any) error {
	detail["drop_event"] = w.event
	text, err := asJSON(detail)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, row_count, detail, term) VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7)`,
		w.Name, kind, orNull(w.From), orNull(w.To), rows, text, term)
	return err
}

// asJSON writes a detail in a form that any mode of the client sends as text.
func asJSON(detail map[string]any) (string, error) {
	text, err := json.Marshal(detail)
	if err != nil {
		return "", fmt.Errorf("write the detail of an event: %w", err)
	}
	return string(text), nil
}
