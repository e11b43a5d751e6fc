// The work of `test_generators.py` with a client that openapi-generator generated for Java.
package client;

import java.time.OffsetDateTime;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.CountsApi;
import org.openapitools.client.api.EntitiesApi;
import org.openapitools.client.api.EventsApi;
import org.openapitools.client.api.WorkflowsApi;
import org.openapitools.client.model.*;

public class Main {
    static final long FIRST = 5_000_000_001L;
    static final OffsetDateTime NOW = OffsetDateTime.now();

    interface Call {
        Object make() throws ApiException;
    }

    static void check(boolean holds, Object shown) {
        if (!holds) throw new IllegalStateException(String.valueOf(shown));
    }

    static ApiException refused(int status, Call call) {
        Object answer;
        try {
            answer = call.make();
        } catch (ApiException error) {
            check(error.getCode() == status, error);
            return error;
        }
        throw new IllegalStateException(String.valueOf(answer));
    }

    static ResultOrBatch post(EventsApi events, EventOrEvents body) throws ApiException {
        return events.postEvents(body, null, null, null, null, null, null, null, null, null, null, null, null, null);
    }

    static Position after(long previous) {
        return new Position().sequence(previous + 1).previous(previous);
    }

    static WorkflowCommit commit(String step, String effect) {
        Provenance provenance = new Provenance().effectId(effect).timestamp(NOW);
        return new WorkflowCommit().state(Map.of("step", step)).provenance(provenance);
    }

    public static void main(String[] arguments) throws Exception {
        ApiClient client = new ApiClient().setBasePath(arguments[0]);
        UUID id = UUID.fromString(arguments[1]);
        String key = arguments[2];

        EventsApi events = new EventsApi(client);
        InitiatedData data = new InitiatedData().nodeType("compute").capabilities(Map.of("gpu", true));
        Initiated one = new Initiated().type(Initiated.TypeEnum.REGISTRATION_INITIATED).eventId(UUID.randomUUID())
            .entityId(id).occurredAt(NOW).position(new Position().sequence(FIRST)).data(data);
        ResultOrBatch posted = post(events, new EventOrEvents(new Event(one)));
        check(posted.getResult().getOutcome() == Outcome.APPLIED, posted);

        Accepted second = new Accepted().type(Accepted.TypeEnum.REGISTRATION_ACCEPTED).eventId(UUID.randomUUID())
            .entityId(id).occurredAt(NOW).position(after(FIRST));
        AckReceived third = new AckReceived().type(AckReceived.TypeEnum.REGISTRATION_ACK_RECEIVED)
            .eventId(UUID.randomUUID()).entityId(id).occurredAt(NOW).position(after(FIRST + 1));
        ResultOrBatch batch = post(events, new EventOrEvents(List.of(new Event(second), new Event(third))));
        check(batch.getBatchAnswer().getSummary().getApplied() == 2, batch);

        Heartbeat beat = new Heartbeat().type(Heartbeat.TypeEnum.NODE_HEARTBEAT).eventId(UUID.randomUUID())
            .entityId(id).occurredAt(NOW).position(after(FIRST + 8));
        ApiException early = refused(409, () -> post(events, new EventOrEvents(new Event(beat))));
        check(OrderProblem.fromJson(early.getResponseBody()).getOutcome() == Outcome.EARLY, early);

        EntitiesApi entities = new EntitiesApi(client);
        Registration row = entities.getEntity(id, null, null, null);
        check(row.getCurrentState() == RegistrationState.ACK_RECEIVED, row);
        check(row.getLastAppliedSequence() == FIRST + 2 && row.getAckDeadline() == null, row);

        List<RegistrationState> states = List.of(RegistrationState.ACK_RECEIVED);
        EntityPage page = entities.listEntities(null, 10L, null, states, null, null, null, null, null, null);
        check(page.getItems().stream().anyMatch(each -> each.getEntityId().equals(id)), page);

        StateCounts counts = new CountsApi(client).countStates(null, null);
        check(counts.getCounts().getAckReceived() >= 1, counts);

        WorkflowsApi workflows = new WorkflowsApi(client);
        Workflow created = workflows.commitWorkflow(key, commit("reserve", "checkout"), null, "*", null);
        check(created.getVersion() == 1, created);
        Workflow changed = workflows.commitWorkflow(key, commit("pay", "payment"), "\"1\"", null, null);
        check(changed.getVersion() == 2, changed);
        ApiException stale = refused(
            412, () -> workflows.commitWorkflow(key, commit("ship", "shipping"), "\"1\"", null, null));
        check(StateProblem.fromJson(stale.getResponseBody()).getActualVersion() == 2, stale);
        Workflow read = workflows.getWorkflow(key, null, null);
        check(read.getVersion() == 2 && read.getState().equals(Map.of("step", "pay")), read);
    }
}
