//go:build !unfenced

package sink

// move is the last statement before COMMIT, so that the lane's row is locked for a moment only: a worker that is stopped
// during the COPY before it holds up nobody. Its conditions are what makes a batch stored once: see docs/guarantees.md.
const move = `UPDATE audit_lane SET next_offset = $2, leader_epoch = $3, updated_at = now()
	WHERE lane_id = $1 AND epoch = $4 AND next_offset = $5`
