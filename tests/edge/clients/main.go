// The work of `test_generators.py` with a client that oapi-codegen generated as the package `pqs`.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"example.invalid/client/pqs"
	"github.com/google/uuid"
)

const first = int64(5_000_000_001)

var (
	ctx = context.Background()
	now = time.Now().UTC()
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func check(holds bool, body []byte) {
	if !holds {
		panic(string(body))
	}
}

func position(sequence, previous int64) pqs.Position {
	if previous == 0 {
		return pqs.Position{Sequence: &sequence}
	}
	return pqs.Position{Sequence: &sequence, Previous: &previous}
}

func commit(step, effect string) pqs.WorkflowCommit {
	return pqs.WorkflowCommit{
		State:      map[string]interface{}{"step": step},
		Provenance: pqs.Provenance{EffectId: effect, Timestamp: now},
	}
}

func main() {
	client := must(pqs.NewClientWithResponses(os.Args[1]))
	id, key := uuid.MustParse(os.Args[2]), os.Args[3]
	post := func(body pqs.EventOrEvents) *pqs.PostEventsResponse {
		return must(client.PostEventsWithResponse(ctx, &pqs.PostEventsParams{}, body))
	}
	var event, second, third, beat pqs.Event
	var body pqs.EventOrEvents

	capabilities := map[string]interface{}{"gpu": true}
	data := pqs.InitiatedData{NodeType: "compute", Capabilities: &capabilities}
	check(event.FromInitiated(pqs.Initiated{
		EventId: uuid.New(), EntityId: id, OccurredAt: now, Position: position(first, 0), Data: data,
	}) == nil, nil)
	check(body.FromEvent(event) == nil, nil)
	posted := post(body)
	check(posted.JSON200 != nil, posted.Body)
	check(must(posted.JSON200.AsResult()).Outcome == pqs.Outcome("applied"), posted.Body)

	check(second.FromAccepted(pqs.Accepted{
		EventId: uuid.New(), EntityId: id, OccurredAt: now, Position: position(first+1, first),
	}) == nil, nil)
	check(third.FromAckReceived(pqs.AckReceived{
		EventId: uuid.New(), EntityId: id, OccurredAt: now, Position: position(first+2, first+1),
	}) == nil, nil)
	check(body.FromEventArray(pqs.EventArray{second, third}) == nil, nil)
	batch := post(body)
	check(batch.JSON200 != nil, batch.Body)
	check(must(batch.JSON200.AsBatchAnswer()).Summary.Applied == 2, batch.Body)

	check(beat.FromHeartbeat(pqs.Heartbeat{
		EventId: uuid.New(), EntityId: id, OccurredAt: now, Position: position(first+9, first+8),
	}) == nil, nil)
	check(body.FromEvent(beat) == nil, nil)
	early := post(body)
	check(early.ApplicationproblemJSON409 != nil, early.Body)
	check(early.ApplicationproblemJSON409.Outcome == pqs.Outcome("early"), early.Body)

	row := must(client.GetEntityWithResponse(ctx, id, &pqs.GetEntityParams{}))
	check(row.JSON200 != nil && row.JSON200.CurrentState == pqs.RegistrationStateAckReceived, row.Body)
	check(*row.JSON200.LastAppliedSequence == first+2 && row.JSON200.AckDeadline == nil, row.Body)

	limit, states := int64(10), []pqs.RegistrationState{pqs.RegistrationStateAckReceived}
	page := must(client.ListEntitiesWithResponse(ctx, &pqs.ListEntitiesParams{State: &states, Limit: &limit}))
	check(page.JSON200 != nil, page.Body)
	found := false
	for _, each := range page.JSON200.Items {
		found = found || each.EntityId == id
	}
	check(found, page.Body)

	counts := must(client.CountStatesWithResponse(ctx, &pqs.CountStatesParams{}))
	check(counts.JSON200 != nil && counts.JSON200.Counts.AckReceived >= 1, counts.Body)

	any, one := "*", `"1"`
	creating, changing := &pqs.CommitWorkflowParams{IfNoneMatch: &any}, &pqs.CommitWorkflowParams{IfMatch: &one}
	created := must(client.CommitWorkflowWithResponse(ctx, key, creating, commit("reserve", "checkout")))
	check(created.JSON201 != nil && created.JSON201.Version == 1, created.Body)
	changed := must(client.CommitWorkflowWithResponse(ctx, key, changing, commit("pay", "payment")))
	check(changed.JSON200 != nil && changed.JSON200.Version == 2, changed.Body)
	stale := must(client.CommitWorkflowWithResponse(ctx, key, changing, commit("ship", "shipping")))
	check(stale.ApplicationproblemJSON412 != nil, stale.Body)
	check(*stale.ApplicationproblemJSON412.ActualVersion == 2, stale.Body)
	read := must(client.GetWorkflowWithResponse(ctx, key, &pqs.GetWorkflowParams{}))
	check(read.JSON200 != nil && read.JSON200.Version == 2, read.Body)
	check(fmt.Sprint(read.JSON200.State["step"]) == "pay", read.Body)
}
